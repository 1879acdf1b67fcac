"""Draw the images of docs/monitoring.md again, from runs that are made up.

    python scripts/monitor_images.py [FOLDER]        (default: docs/images)

Needs Chromium (`chromium` in the PATH) and Pillow. The web view is driven as a person drives it, by
the browser's own debugging protocol; the terminal's view is drawn by Textual and shown by the same
browser.
"""

import asyncio
import io
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from browser import Browser
from PIL import Image

from workloads.monitor.html import report
from workloads.monitor.html.web import open_server
from workloads.monitor.text.live import Monitor
from workloads.run import Run

COLOURS = 128  # of an image: a third of the bytes
_FIGURE = "document.querySelectorAll('.charts.live figure').length > 4"


class Made:
    """A run that is made up: its files as a training writes them."""

    def __init__(self, root: Path, name: str, steps: int, **optim: object) -> None:
        self.run, self.steps = Run(root / name), steps
        for part in ("status", "logs", "checkpoints", "evaluation"):
            (self.run.path / part).mkdir(parents=True)
        profile = name.partition("/")[0]
        model = {"name": "Qwen/Qwen3-8B", "max_length": 4096}
        config = {"name": profile, "workload": "llm", "model": model, "optim": optim}
        self._write("config.json", {"format": 1, "config": config, "provenance": {}})
        self._write("manifest.json", {"format": 1, "hosts": ["node-0"], "data": {}})

    def _write(self, name: str, value: object) -> None:
        (self.run.path / name).write_text(json.dumps(value))

    def train(self, done: int, noise: random.Random, floor: float, world: int, end: float) -> None:
        """Rows up to a step, the last one written at `end`."""
        events = [
            {"event": "started", "attempt": 0, "hosts": ["node-0"], "shared": True},
            {
                **{"event": "training", "step": 0, "max_steps": self.steps},
                **{"world_size": world, "strategy": "fsdp2"},
            },
        ]
        for at, event in enumerate(events):
            self._append("events.jsonl", event, end - done * 0.9 - 60 + 40 * at)
        for step in range(1, done + 1):
            when = end - (done - step) * 0.9
            loss = floor + 1.9 * math.exp(-step / (self.steps / 6)) + 0.06 * noise.gauss(0, 1)
            row = {
                **{"step": step, "epoch": 3 * step / self.steps, "loss": loss},
                **{"grad_norm": 0.8 + 0.2 * noise.random(), "seconds_per_step": 0.9},
                "learning_rate": 2e-4 * (1 + math.cos(math.pi * step / self.steps)) / 2,
                **{"tokens_per_second": 41_000 + 900 * noise.gauss(0, 1), "memory": 61 << 30},
            }
            self._append("metrics.jsonl", row, when)
            if step % (self.steps // 10) == 0:
                facts = {"step": step, "eval_loss": loss + 0.05}
                self._append("evaluations.jsonl", facts, when)
                saved = {"event": "checkpoint", "step": step, "bytes": 2 << 30}
                self._append("events.jsonl", saved, when)

    def end(self, event: str, when: float, **facts: object) -> None:
        self._append("events.jsonl", {"event": event, **facts}, when)
        for path in (self.run.path / "config.json", self.run.events):
            os.utime(path, (when, when))

    def _append(self, name: str, row: dict[str, object], when: float) -> None:
        times = {"time": when, "monotonic": time.monotonic() - (time.time() - when)}
        with (self.run.path / name).open("a") as file:
            file.write(json.dumps({**row, **times}) + "\n")

    def beat(self, rank: int, step: int, node: int, ago: float = 0.0, **facts: object) -> None:
        """A heartbeat of so many seconds ago."""
        status = {
            **{"rank": rank, "node": node, "host": f"node-{node}", "pid": 4000 + rank},
            **{"attempt": 0, "phase": "training", "step": step, "progress": step, "beat": 1},
            **{"memory": 61 << 30, "monotonic": time.monotonic() - ago, **facts},
        }
        path = self.run.path / "status" / f"{rank}.json"
        path.write_text(json.dumps(status))
        os.utime(path, (time.time() - ago,) * 2)


def make_runs(root: Path) -> tuple[Made, Made]:
    """One run in training on 32 ranks, one on four whose rank is silent, and older ones."""
    now, noise = time.time(), random.Random(7)
    wide = Made(root, "llm-h100/20260302-091500-41c7", 3000, learning_rate=2e-4, warmup_ratio=0.03)
    wide.train(1840, noise, 0.62, 32, now)
    small = Made(root, "llm-4090/20260302-101000-9d20", 1000, learning_rate=2e-4)
    small.train(420, noise, 0.8, 4, now)
    older = [
        ("llm-h100/20260301-180200-77aa", 0.70, 1e-4, "finished"),
        ("llm-h100/20260301-120000-1be0", 0.66, 2e-4, "finished"),
        ("llm-4090/20260228-090000-c0de", 0.90, 5e-4, "failed"),
    ]
    for day, (name, floor, rate, how) in enumerate(older, start=1):
        run = Made(root, name, 3000, learning_rate=rate, warmup_ratio=0.03)
        done = 1310 if how == "failed" else 3000
        run.train(done, noise, floor, 8, now - day * 70_000)
        reason = "rank 3: CUDA out of memory" if how == "failed" else ""
        run.end(how, now - day * 70_000, code=int(how == "failed"), reason=reason)
    return wide, small


@contextmanager
def beating(wide: Made, small: Made) -> Iterator[None]:
    """Heartbeats once a second, meanwhile."""
    done = threading.Event()

    def beats() -> None:
        while not done.wait(1):
            beat(wide, small)

    beat(wide, small)
    thread = threading.Thread(target=beats, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()


def beat(wide: Made, small: Made) -> None:
    """Fresh heartbeats: one rank of the large run lags, one of the small run is silent."""
    for rank in range(32):
        step = 1840 - (57 if rank == 13 else 0)
        wide.beat(rank, step, rank // 8, phase="saving" if rank == 2 else "training")
    for rank in range(4):
        small.beat(rank, 420, 0, ago=24 if rank == 2 else 0)


def save(browser: Browser, path: Path) -> None:
    """What is shown, as a small PNG."""
    image = Image.open(io.BytesIO(browser.screenshot())).convert("RGB").quantize(COLOURS)
    image.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size // 1024} KiB")


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The web view of the runs, at the address that is handed out."""
    server = open_server(root, None, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def draw_web(browser: Browser, root: Path, wide: Made, folder: Path) -> None:
    with served(root) as address:
        browser.resize(1280, 900)
        name = f"{wide.run.path.parent.name}/{wide.run.id}"
        browser.open(f"{address}/run/{name}", _FIGURE)
        browser.hover(".charts.live .chart", 0.45)
        save(browser, folder / "monitor-web.png")
        browser.resize(1280, 420)
        browser.open(address, "document.querySelector('.tools input')")
        save(browser, folder / "monitor-list.png")
        names = ("20260301-180200-77aa", "20260301-120000-1be0")
        query = "&".join(f"run=llm-h100/{name}" for name in names)
        browser.resize(1280, 760)
        browser.open(f"{address}/compare?{query}", _FIGURE)
        browser.hover(".charts.live .chart", 0.3)
        save(browser, folder / "monitor-compare.png")


def draw_report(browser: Browser, root: Path, folder: Path) -> None:
    run = Run(root / "llm-h100/20260301-120000-1be0")
    path = report.write([run], root / "page.html")
    browser.resize(1280, 760)
    browser.open(path.as_uri(), "document.querySelector('svg')")
    save(browser, folder / "report.png")


def draw_terminal(browser: Browser, run: Made, keys: Sequence[str], path: Path) -> None:
    """The live view in 140 x 40 cells after some keys."""

    async def svg() -> str:
        app = Monitor(run.run.path.parent.parent, run.run)
        async with app.run_test(size=(140, 40)) as pilot:
            await asyncio.sleep(5)  # some readings, for what is drawn over time
            await pilot.press(*keys)
            await pilot.pause()
            return app.export_screenshot(title="tatara monitor")

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        style = "body{margin:0;background:#fff}svg{width:1280px;display:block}"
        page.write_text(f"<!doctype html><style>{style}</style>{asyncio.run(svg())}")
        browser.resize(1280, 780)
        browser.open(page.as_uri(), "document.querySelector('svg')")
        height = browser.evaluate("document.querySelector('svg').getBoundingClientRect().height")
        browser.resize(1280, math.ceil(height))
        save(browser, path)


def main(folders: Sequence[str]) -> int:
    folder = Path(folders[0] if folders else "docs/images")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "outputs"
        wide, small = make_runs(root)
        browser = Browser(1280, 900)
        try:
            with beating(wide, small):
                draw_web(browser, root, wide, folder)
                draw_report(browser, root, folder)
                draw_terminal(browser, wide, ["left"] * 61, folder / "monitor-terminal.png")
                draw_terminal(browser, small, [], folder / "monitor-suspended.png")
        finally:
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
