"""A part of bench/gpu/run.sh as a process: its folder, its limits, its end.

Standard library alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu._install import Refused
from bench.gpu._parts import RUNS, Part
from bench.gpu._summary import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
# On a CPU no part has much to compute, and a loaded machine takes long for anything.
CPU_LIMIT, CPU_LEAST = 900, 5
# Bytes that a part may print before it is ended, and those at either end of it that are kept.
MOST_PRINTED, KEPT_PRINTED = 64 << 20, 1 << 20
# Seconds for a process that was killed to be gone: one in a call of the driver ends after it.
GONE_WITHIN = 30


@dataclass(frozen=True)
class Place:
    """Where a call writes: results of one device, which the next call finds again."""

    work: Path
    device: str

    @property
    def folder(self) -> Path:
        return self.work / self.device

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def runs(self) -> Path:
        return self.folder / RUNS

    @property
    def running(self) -> Path:
        """The process of the part that runs; what a call that was killed leaves behind."""
        return self.folder / "running.json"

    def result(self, part: str) -> Path:
        return self.results / f"{part}.json"

    def log(self, part: str) -> Path:
        return self.results / f"{part}.log"

    def limits(self, part: Part) -> tuple[float, float]:
        """Seconds that a part may take, and those without which it is not begun."""
        return (part.limit, part.expected) if self.device == "cuda" else (CPU_LIMIT, CPU_LEAST)


def run_part(part: Part, place: Place, env: Mapping[str, str], limit: float) -> dict[str, Any]:
    """One part in a process group of its own; its result file is there in the end, always.

    Raises Refused, once that is written, where its process cannot be ended: it holds the GPU.
    """
    begun = time.monotonic()
    own = place.result(part.name).with_suffix(".unfinished")
    own.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.part", part.name, "--device", place.device]
    command += ["--result", str(own), "--work", str(place.folder)]
    with place.log(part.name).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=log, stderr=log, process_group=0
        )
        try:
            write_json(place.running, {"pid": process.pid, "born": _born(process.pid)})
            problem, is_cut = _watched(process, place.log(part.name), begun + limit)
            if not problem and read_json(own).get("status") in (None, "unfinished"):
                problem = f"its process {_ended(process.returncode)} before its result was whole"
        finally:
            is_gone = _end(process)
            if is_gone:
                place.running.unlink(missing_ok=True)
                shutil.rmtree(place.runs, ignore_errors=True)
    _shorten(place.log(part.name))
    result = {"checks": [], "figures": {}, "memory": [], "notes": [], **read_json(own)}
    if problem:
        last = place.log(part.name).read_text(encoding="utf-8", errors="replace")[-2000:]
        result |= {"status": "failed", "error": problem, "log": last, "is_cut": is_cut}
    seconds = round(time.monotonic() - begun, 1)
    result |= {"part": part.name, "title": part.title, "seconds": seconds}
    write_json(place.result(part.name), result)
    own.unlink(missing_ok=True)
    if not is_gone:
        raise Refused(
            f"{part.name}: expected its process {process.pid} to end when it was killed, found it "
            f"after {GONE_WITHIN} seconds: it waits in the driver and holds the GPU; its result is "
            "kept. Wait until it is gone, or restart the machine, and call again"
        )
    return result


def _watched(process: subprocess.Popen[bytes], log: Path, end: float) -> tuple[str, bool]:
    """Wait for a part's end; why it has to be ended, empty where it ends, and if time is why."""
    begun = time.monotonic()
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(left, 1.0))
            return "", False
        if log.stat().st_size > MOST_PRINTED:
            return f"printed more than {MOST_PRINTED >> 20} MiB", False
    return f"did not end within {end - begun:.0f} seconds", True


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End a part and whatever it has started; whether its process is gone."""
    _end_group(process.pid)
    try:
        process.wait(GONE_WITHIN)
    except subprocess.TimeoutExpired:
        return False
    return True


def _shorten(log: Path) -> None:
    """Keep both ends of what a part has printed: it goes into the archive after every part."""
    size = log.stat().st_size
    if size <= 2 * KEPT_PRINTED:
        return
    with log.open("rb") as text:
        first = text.read(KEPT_PRINTED)
        text.seek(size - KEPT_PRINTED)
        last = text.read()
    left_out = f"\n… {size - 2 * KEPT_PRINTED:,} bytes are left out …\n".encode()
    log.write_bytes(first + left_out + last)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does where host memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory},"


def _born(pid: int) -> str:
    """When a process started: this start of the machine, and ticks since it; empty without it."""
    start = ticks = ""
    with contextlib.suppress(OSError):  # sandboxes do not tell
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{start} {ticks}"


def end_left_over(note: Path) -> None:
    """End a part whose call was killed, and wait until the GPU is free.

    Its group keeps its number as long as any process of it lives, also without its first.
    """
    found = read_json(note)
    note.unlink(missing_ok=True)
    if not found:
        return
    without_first = f"{found['born'].partition(' ')[0]} "
    if _born(found["pid"]) not in (found["born"], without_first):
        return
    _end_group(found["pid"])
    end = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(found["pid"], 0)
            time.sleep(0.05)


def _end_group(leader: int) -> None:
    """End a part and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
