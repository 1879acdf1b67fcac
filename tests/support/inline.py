"""A training of one rank within the test's own process: seconds instead of half a minute."""

import importlib
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from workloads.config.merge import resolve
from workloads.errors import TataraError
from workloads.launch.network import free_ports
from workloads.run import Run
from workloads.run.session import Session


@dataclass(frozen=True)
class Trained:
    """A run, what it said on the console, and the error it ended with."""

    run: Run
    console: str
    error: TataraError | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of training, by step; the last one of a step that was done twice."""
        found = {row["step"]: row for row in self.lines(self.run.metrics) if "loss" in row}
        return [found[step] for step in sorted(found)]

    @property
    def course(self) -> list[tuple[int, float, float]]:
        """Step, loss and gradient norm: two runs that learn the same have the same."""
        return [(row["step"], row["loss"], row["grad_norm"]) for row in self.rows]

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """The objects of a .jsonl file of the run."""
        return [json.loads(line) for line in path.read_text().splitlines()]


def train_inline(profile: Path, folder: Path, *words: str) -> Trained:
    """Train as `tatara train` would on one rank, in a run at `folder`, which may have begun."""
    config, _ = resolve(profile, {}, ["export.enabled=false", *words])
    workload = importlib.import_module(f"workloads.{config.workload}.train")
    for name in ("status", "logs", "checkpoints", "evaluation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not (folder / "manifest.json").exists():
        (folder / "manifest.json").write_text("{}")
    console, error = StringIO(), None
    session = Session(Run(folder), _console=console)
    session._status = {"rank": 0, "phase": "starting", "step": 0, "progress": 0, "beat": 0}
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            workload.train(config, session)
        except TataraError as problem:
            error = problem
    return Trained(session.run, console.getvalue(), error)


def as_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job with one rank."""
    facts = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (facts | {"MASTER_PORT": free_ports(), "OMP_NUM_THREADS": 1}).items():
        monkeypatch.setenv(name, str(value))
