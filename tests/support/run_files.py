"""Run directories for tests of the monitor, written by the code that training writes them with."""

import json
import os
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from workloads import run as runs
from workloads.config.merge import resolve
from workloads.run import Run

DEMO = Path("profiles/demo.yaml")
ID = "20260101-120000-abcd"


class Written:
    """A run of the demo profile in `<outputs>/demo/<id>`, and the ways to add to it."""

    def __init__(
        self, outputs: Path, id: str = ID, profile: str = "demo", rate: str = "3e-5"
    ) -> None:
        config, provenance = resolve(DEMO, {"LEARNING_RATE": rate})
        self.run = Run(outputs / profile / id)
        host = socket.gethostname()
        runs.start(self.run, config, provenance, {"hosts": [host], "shared_outputs": True})

    def begun(self, max_steps: int = 100, world_size: int = 2) -> "Written":
        self.run.event("started", attempt=0, hosts=["a", "a"], shared=True)
        facts = {"step": 0, "max_steps": max_steps, "world_size": world_size, "strategy": "ddp"}
        self.run.event("training", **facts)
        return self

    def step(self, step: int, loss: Any, **more: Any) -> None:
        row = {"step": step, "epoch": step / 50, "loss": loss, "learning_rate": 1e-3, **more}
        self.run.metric({"seconds_per_step": 0.5, "tokens_per_second": 1000.0, **row})

    def losses(self, values: list[float], first: int = 1) -> "Written":
        for step, value in enumerate(values, start=first):
            self.step(step, value)
        return self

    def beat(self, rank: int, ago: float = 0.0, **facts: Any) -> None:
        """A heartbeat of `ago` seconds in the past, in the file and by the file's date."""
        host, pid = socket.gethostname(), os.getpid()
        usual = {"rank": rank, "node": rank, "host": host, "pid": pid, "attempt": 0, "step": 7}
        usual |= {"phase": "training", "progress": 20, "beat": 9, "memory": 5 << 20}
        self.run.write_status(rank, {**usual, **facts})
        path = self.run.path / "status" / f"{rank}.json"
        status = json.loads(path.read_text())
        if "monotonic" in facts:
            status["monotonic"] = facts["monotonic"]
        status["monotonic"] -= ago
        path.write_text(json.dumps(status))
        when = status["time"] - ago
        os.utime(path, (when, when))

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file with its size and date, to tell whether anything was written."""
        facts = ((path, path.stat()) for path in sorted(self.run.path.rglob("*")))
        return {str(path): (fact.st_size, fact.st_mtime_ns) for path, fact in facts}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and whether each one opened was closed."""

    VOID = ("meta", "link", "br", "hr", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    @property
    def names(self) -> set[str]:
        return {tag for tag, _ in self.found}

    def dangers(self) -> Iterator[str]:
        """What would run code or fetch something from elsewhere."""
        for tag, facts in self.found:
            if tag in ("iframe", "object", "embed", "img", "base", "form", "animate", "set"):
                yield tag
            for name, value in facts.items():
                text = (value or "").strip().lower()
                if name.startswith("on") or text.startswith(("javascript:", "data:text")):
                    yield f"{tag} {name}"
                if name in ("src", "href") and not text.startswith("/"):
                    yield f"{tag} {name}={value}"
