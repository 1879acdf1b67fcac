"""Small facts about processes that the standard library does not offer.

`python -m workloads.processes COMMAND …` runs a command that ends with its parent, at low priority.
"""

import ctypes
import gc
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1
PARENT = "TATARA_PARENT"  # the variable in which a process tells its children its pid


def die_with_parent() -> None:
    """End this process when its parent ends in any way (Linux).

    A parent that names itself in the variable PARENT may have ended before this code runs.
    """
    parent = int(os.environ.pop(PARENT, "") or os.getppid())
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _LossyFile(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            # None: a terminal that another program has made non-blocking, and that is full.
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def lossy_output(descriptor: int) -> TextIO:
    """An output for people: what cannot be written is lost, and ends nothing.

    Terminals close, the reader of a pipe ends, a disk is full, and a training goes on.
    """
    raw = io.BufferedWriter(_LossyFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="replace", line_buffering=True)


def make_output_lossy() -> None:
    """Let what this process cannot print from here on be lost, and end nothing."""
    sys.stdout.flush()
    if sys.stdout is sys.__stdout__:
        sys.stdout = lossy_output(1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = lossy_output(2)


def own_command(*arguments: str) -> str:
    """The command to type for `tatara ARGUMENT…`; in a container that of the host."""
    if service := os.environ.get("TATARA_SERVICE"):
        return _host_command(service, *arguments)
    return shlex.join([_tatara(), *arguments])


def _host_command(service: str, verb: str, *arguments: str) -> str:
    """The same outside of containers, where trainings and the monitor have scripts."""
    if verb == "train":
        profile, *settings = arguments
        return shlex.join(["scripts/start_training.sh", Path(profile).stem, *settings])
    if verb == "monitor":
        return shlex.join(["scripts/monitor_training.sh", *arguments])
    return shlex.join(["docker", "compose", "run", "--rm", "--no-deps", service, verb, *arguments])


def start_of_node(node: int) -> str:
    """How to start another node of a job with the same settings."""
    service = os.environ.get("TATARA_SERVICE", "")
    name, _, role = service.rpartition("-")
    if role == "master" and os.environ.get("MASTER_ADDR") == service:
        return f"start it again: docker compose start {name}-worker"
    return f"start it there with NODE_RANK={node} and MASTER_ADDR set"


def _tatara() -> str:
    """The name `tatara` if it is on PATH, else its path."""
    beside = Path(sys.executable).with_name("tatara")
    if shutil.which("tatara") or not beside.is_file():
        return "tatara"
    near = beside.is_relative_to(Path.cwd())
    return str(beside.relative_to(Path.cwd()) if near else beside)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which would find nothing and take a seventh of the time.

    Loaded modules stay for good, so later collections skip them, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended, by SIGSTOP or a debugger."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")


def out_of_memory_kills() -> int:
    """Number of processes that the kernel has killed for memory in this control group."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def memory_limit() -> int | None:
    """The control group's memory limit in bytes, None without one."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        # Version 1 writes "no limit" as a number near 2^63.
        return int(text) if text.isdecimal() and int(text) < 1 << 60 else None
    return None


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    die_with_parent()
    os.nice(10)
    os.execvp(sys.argv[1], sys.argv[1:])
