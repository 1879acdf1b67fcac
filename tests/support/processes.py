"""Real trainings as real processes: started, watched through their run's files, disturbed."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.run import Run
from workloads.run.integrity import sealed

ROOT = Path(__file__).resolve().parents[2]
INJECT = ROOT / "tests" / "fault" / "inject"
# The demo without its evaluations: 24 steps, a checkpoint every 8.
SHORT = (
    "train.epochs=50",
    "train.max_steps=24",
    "train.per_device_batch_size=4",
    "checkpoints.every_steps=8",
    "evaluation.every_steps=8",
    "evaluation.task=null",
    "export.enabled=false",
    "tracking.tensorboard=false",
    "parallel.restart_delay=0.1",
)
ONE_RANK = ("parallel.nodes=1", "parallel.ranks_per_node=1", "parallel.strategy=single")
PATIENCE = 240.0  # a bound for the worst machine, not an expectation


class Training:
    """`tatara train profiles/demo.yaml` in a folder of its own."""

    def __init__(
        self,
        outputs: Path,
        words: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        fault: str = "",
        resume: bool = False,
        profile: str = "profiles/demo.yaml",
        defaults: Sequence[str] = SHORT,
        terminal: int | None = None,
    ) -> None:
        """terminal: the end of a pseudo terminal that becomes the training's own."""
        self.outputs = outputs
        outputs.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if "WANDB" not in name}
        full = {**inherited, "TATARA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1", **(env or {})}
        if fault:
            full |= {"FAULT": fault, "PYTHONPATH": str(INJECT)}
        command = [sys.executable, "-m", "workloads.cli", "train", profile, *defaults, *words]
        if resume:
            command += ["--resume", "latest"]
        self.log = outputs / "console.log"
        with self.log.open("ab") as log:
            if terminal is None:
                self.process = subprocess.Popen(command, cwd=ROOT, env=full, stdout=log, stderr=log)
                return
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=full,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    @property
    def run(self) -> Run:
        """The run, once its folder is there."""
        self.until(lambda: bool(list(self.outputs.glob("*/*/config.json"))), "a run directory")
        return Run(max(self.outputs.glob("*/*/config.json")).parent)

    @property
    def console(self) -> str:
        return self.log.read_text(errors="replace")  # it may end within a letter for now

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to show in the run's files; fail with the console otherwise."""
        end = time.monotonic() + PATIENCE
        while not condition():
            ended = self.process.poll() is not None
            if (ended and not condition()) or time.monotonic() > end:
                raise AssertionError(f"no {what}; exit {self.process.poll()}\n{self.everything()}")
            time.sleep(0.02)

    def everything(self) -> str:
        logs = [
            path.read_text(errors="replace")[-3000:] for path in self.outputs.glob("*/*/logs/*.log")
        ]
        return "\n".join([self.console[-3000:], *logs])

    def until_step(self, step: int) -> None:
        self.until(lambda: any(reached >= step for reached in steps(self.run)), f"step {step}")

    def until_event(self, name: str) -> dict[str, Any]:
        self.until(lambda: bool(events(self.run, name)), f"event {name!r}")
        return events(self.run, name)[-1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_tree(self, number: int) -> None:
        """Send a signal to the training's every process, also those in sessions of their own."""
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def signal_rank(self, rank: int, number: int) -> int:
        """Send a signal to one rank's own process; returns its pid."""
        pid = int(self.run.statuses()[rank]["pid"])
        os.kill(pid, number)
        return pid

    def end(self, expected: int = 0) -> "Training":
        """Wait for the end and check the exit code, as a shell gives it."""
        try:
            code = self.process.wait(PATIENCE)
            code = code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise AssertionError(f"did not end\n{self.everything()}") from None
        assert code == expected, f"exit {code}, expected {expected}\n{self.everything()}"
        return self


@dataclass(frozen=True)
class Trainings:
    """Starts one kind of training; place: what stands in the places of its rows."""

    profile: str
    place: str
    words: tuple[str, ...] = ()

    def __call__(self, outputs: Path, words: Sequence[str] = (), **more: Any) -> Training:
        return Training(outputs, [*self.words, *words], profile=self.profile, **more)


def descendants(root: int) -> list[int]:
    """A process and all below it, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines file that may be written right now."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def steps(run: Run) -> list[int]:
    return [row["step"] for row in rows(run.metrics) if "loss" in row]


def events(run: Run, name: str) -> list[dict[str, Any]]:
    return [row for row in rows(run.events) if row["event"] == name]


def losses(run: Run) -> dict[int, tuple[Any, ...]]:
    """Loss, gradient norm, learning rate and batch of every step, the last word on each."""
    names = ("loss", "grad_norm", "learning_rate", "batches")
    return {
        row["step"]: tuple(row.get(name) for name in names)
        for row in rows(run.metrics)
        if "loss" in row
    }


# Files in which time, paths or file layout differ between two equal trainings.
_NOT_STATE = ("trainer_state.json", "training_args.bin", ".metadata")


def state(run: Run) -> dict[str, str]:
    """Digests of weights, optimizer, schedule and random states in the newest checkpoint."""
    record = json.loads((sealed(run.checkpoints)[-1] / "complete.json").read_text())
    return {
        name: fact["xxh3_128"]
        for name, fact in record["files"].items()
        if not name.endswith(_NOT_STATE)
    }
