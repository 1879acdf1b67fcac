"""Hours of a lease in milliseconds: a clock that is pushed on, a machine whose training follows.

The machine's files are real, in a folder of their own, sealed as a training seals them.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.rent import cuda_step
from workloads.rent.clock import Clock
from workloads.rent.remote import HostKeyChanged, OutOfTime, Remote, RemoteAnswer, Unreachable
from workloads.run import Run
from workloads.run.integrity import SEAL, seal

RUN_ID = "20260101-120000-abcd"


class FakeClock(Clock):
    """Time that passes only while somebody waits; what is due happens meanwhile."""

    def __init__(self, begin: float = 1_800_000_000.0) -> None:
        self.now = begin
        self._due: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, stop: Callable[[], int] = lambda: 0) -> None:
        if stop():
            return
        end = self.now + seconds
        while due := sorted(
            (event for event in self._due if event[0] <= end), key=lambda event: event[0]
        ):
            self._due.remove(due[0])
            self.now = max(self.now, due[0][0])
            due[0][1]()
            if stop():
                return
        self.now = end

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self._due.append((self.now + seconds, act))


@dataclass
class Over:
    """What is over there, and its faults.

    train_seconds: of the training, a checkpoint every `save_every`; code: its end by itself.
    gpu_faults: what CUDA says on one machine after the other. dark: no ssh; damaged: copies, the
    first ones, whose bytes are flipped on the way; slow: copies take so many seconds.
    """

    folder: Path
    clock: FakeClock
    train_seconds: float = 600.0
    save_every: float = 200.0
    save_takes: float = 5.0
    code: int = 0
    gpu_faults: list[str] = field(default_factory=list)
    dark: bool = False
    other_key: bool = False
    damaged: int = 0
    slow: float = 0.0
    hangs_at: float = 1e12
    ignores_term: bool = False
    doctor: str = ""
    calls: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    on_call: Callable[[str], object] = lambda name: None
    begun: float = 0.0
    ends_at: float = 1e12
    final_code: int | None = None
    _saved: int = 0

    @property
    def run(self) -> Run:
        return Run(self.folder / "run")

    def begin(self) -> None:
        self.begun, self.ends_at = self.clock.now, self.clock.now + self.train_seconds
        self.run.make()
        (self.run.path / "config.json").write_text("{}")

    def stop(self, signal: str) -> None:
        self._catch_up()
        if self.final_code is not None or (self.ignores_term and signal == "TERM"):
            return
        if signal == "KILL":
            self.ends_at, self.code = self.clock.now, 137
        else:
            self._save(self._saved + 1)
            self.ends_at, self.code = self.clock.now + self.save_takes, 3

    def _save(self, number: int) -> None:
        path = self.run.checkpoints / f"checkpoint-{number}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes([number]) * 1000)
        seal(path, {"step": number})
        with self.run.events.open("a") as file:
            file.write(json.dumps({"event": "checkpoint", "step": number}) + "\n")
        self._saved = number

    def _catch_up(self) -> None:
        if not self.begun or self.final_code is not None:
            return
        end = min(self.clock.now, self.ends_at, self.begun + self.hangs_at)
        for number in range(self._saved + 1, int((end - self.begun) // self.save_every) + 1):
            self._save(number)
        if self.clock.now >= self.ends_at:
            self.final_code = self.code
            if self.code == 0:
                self.run.final.mkdir()
                (self.run.final / "model.safetensors").write_bytes(b"final" * 100)
                seal(self.run.final, {})

    def facts(self) -> dict[str, Any]:
        self._catch_up()
        step = int(min(self.clock.now - self.begun, self.hangs_at))
        return {
            "run": bool(self.begun),
            "code": self.final_code,
            "alive": self.final_code is None and bool(self.begun),
            "phase": "training",
            "step": step,
            "steps": int(self.train_seconds),
            "progress": str(step),
            "sealed": sorted(path.parent.name for path in self.run.checkpoints.glob(f"*/{SEAL}")),
            "final": (self.run.final / SEAL).is_file(),
            "free": 1 << 40,
        }


@dataclass(frozen=True)
class FakeRemote(Remote):
    """ssh to what is over there."""

    over: Over = None  # type: ignore[assignment]

    def _call(self, name: str, stops: bool = True) -> None:
        self.over.calls.append(name)
        self.over.on_call(name)
        if self.over.other_key:
            raise HostKeyChanged("its host key changed")
        if self.over.dark:
            raise Unreachable("ssh: connect to host: Connection timed out")
        if stops and self.stop():
            raise OutOfTime("given up, as asked")

    def run(self, script: str, seconds: float = 60, stdin: str = "") -> RemoteAnswer:
        name = next((word for word, part in _SCRIPTS.items() if part in script), "run")
        self._call(name)
        if name == "start":
            self.over.begin()
        if name in ("TERM", "KILL"):
            self.over.stop(name)
        if name == "secret":
            self.over.kept[script.rpartition("/")[2].strip()] = stdin
        if name == "torch":
            return RemoteAnswer(0, '{"device": "NVIDIA H100 PCIe"}\n', "")
        if name == "doctor" and self.over.doctor:
            return RemoteAnswer(1, self.over.doctor, "")
        return RemoteAnswer(0, "", "")

    def python(self, source: str, *arguments: str, seconds: float = 60) -> RemoteAnswer:
        if source == Path(cuda_step.__file__).read_text():
            self._call("cuda")
            fault = self.over.gpu_faults.pop(0) if self.over.gpu_faults else ""
            return (
                RemoteAnswer(1, "", fault) if fault else RemoteAnswer(0, "every GPU computes", "")
            )
        self._call("look")
        return RemoteAnswer(0, json.dumps(self.over.facts()), "")

    def push(self, root: Path, names: Sequence[str], folder: str, seconds: float) -> None:
        self._call("push")

    def pull(
        self, folder: str, copy: Path, rules: Sequence[str], seconds: float, check: bool = False
    ) -> None:
        self._call("pull")
        if ".cache/rent" in folder:
            return
        if self.over.slow:
            self.over.clock.sleep(min(self.over.slow, seconds))
            if self.over.slow > seconds:
                raise OutOfTime(f"rsync: took longer than {seconds:.0f} s")
        there = self.over.run.path / folder.partition(f"/{RUN_ID}")[2].strip("/")
        named = [rule.split("/")[2] for rule in rules if rule.startswith("--include=/checkpoints/")]
        for path in sorted(there.rglob("*")):
            below = path.relative_to(there)
            left_out = "--exclude=/checkpoints/*/" in rules and below.parts[0] == "checkpoints"
            if not path.is_file() or (left_out and not (set(below.parts) & set(named))):
                continue
            if f"--exclude={SEAL}" in rules and path.name == SEAL:
                continue
            if "--exclude=/final/" in rules and below.parts[0] == "final":
                continue
            self._copy(path, copy / below, check)

    def _copy(self, source: Path, target: Path, check: bool) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # As rsync does: what has the same size and time is not looked at, but by digest.
        known = target.is_file() and target.stat().st_size == source.stat().st_size
        if known and not check and target.stat().st_mtime == source.stat().st_mtime:
            return
        shutil.copy2(source, target)
        if self.over.damaged and source.suffix == ".safetensors":
            self.over.damaged -= 1
            content = bytearray(target.read_bytes())
            content[7] ^= 1
            target.write_bytes(content)
            shutil.copystat(source, target)


_SCRIPTS = {
    "prepare": "for program in",
    "secret": "cat >/dev/shm",
    "start": "runner.process",
    "TERM": "kill -TERM",
    "KILL": "kill -KILL",
    "forget": "rm -rf /dev/shm",
    "set-up": "local_setup.sh",
    "torch": "trial compute",
    "doctor": "doctor .cache",
}
