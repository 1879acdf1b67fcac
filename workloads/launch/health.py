"""Health check of a container: `python -m workloads.launch.health` ends with 0 while ranks live.

Reads the process list and the heartbeats of ranks; needs only the standard library. Ends with 0
while every rank has a fresh heartbeat, and while there are no ranks: when nodes meet, between two
attempts and at the end, the supervisor alone shows the health.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60.0  # seconds; heartbeats are written every second, a busy disk may delay some


@dataclass(frozen=True)
class Rank:
    """A rank's process by /proc; `age` in seconds since its start."""

    pid: int
    rank: int
    run: Path
    age: float

    def silence(self) -> float:
        """Seconds since its last heartbeat, or since its start where there is none yet."""
        try:
            status = json.loads((self.run / "status" / f"{self.rank}.json").read_text())
        except (OSError, ValueError):
            return self.age
        if status["pid"] != self.pid:
            return self.age
        return time.monotonic() - float(status["monotonic"])


def ranks(proc: Path = Path("/proc")) -> Iterator[Rank]:
    """The ranks among the processes that this user can read."""
    for folder in proc.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"workloads.launch.rank" not in words or b"workloads.launch.torchrun" in words:
                continue
            pairs = (folder / "environ").read_bytes().split(b"\0")
            started = (folder / "stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            continue  # it ended meanwhile
        env = dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)
        if "RANK" in env and "TATARA_RUN" in env:
            born = int(started) / os.sysconf("SC_CLK_TCK")
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - born
            yield Rank(int(folder.name), int(env["RANK"]), Path(env["TATARA_RUN"]), age)


def main(limit: float = LIMIT) -> int:
    """Print one line; 1 where a rank is silent for longer than `limit` seconds."""
    found = sorted(ranks(), key=lambda rank: rank.rank)
    silent = [rank for rank in found if rank.silence() > limit]
    for rank in silent:
        print(f"rank {rank.rank} (pid {rank.pid}): no heartbeat for {rank.silence():.0f} s")
    if not silent:
        print(f"{len(found)} ranks, all with a heartbeat" if found else "no ranks: setting up")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main(float(os.environ.get("TATARA_HEALTH_LIMIT") or LIMIT)))
