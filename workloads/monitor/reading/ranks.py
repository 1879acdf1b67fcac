"""The ranks of a run by their heartbeats and, on this machine, their processes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workloads.launch import health
from workloads.monitor.reading.clock import LastChange, Now
from workloads.monitor.reading.follow import number, read_object, whole
from workloads.processes import is_stopped
from workloads.run.events import Phase
from workloads.run.session import BEAT

LATE, STALLED = 4.0, 10.0  # seconds without a heartbeat; one is written every second
_GUESSED = 60.0  # seconds of a file's age, where that is the only sign
_STUCK = 60.0  # seconds between two steps without progress, and at least so many steps' time:
_STUCK_STEPS = 20
_EVERY = 2.0  # seconds between two searches through all processes
_SILENT = ("late", "stalled")
_LAST_PHASES = (Phase.DONE, Phase.STOPPED, Phase.FAILED)
TROUBLE = ("suspended", "stalled", "gone", "failed", "stuck", "behind", "slow")


@dataclass(frozen=True)
class RankStatus:
    """One rank. `age`: seconds since its heartbeat; `sure`: whether that is more than an estimate.

    state: ok, late, stalled, suspended, gone (its process ended without a word), stuck (alive, but
    it gets no further), behind (it is some steps behind the others), slow (its steps take a third
    longer than the others'), done, stopped, failed.
    """

    rank: int
    node: int
    host: str
    pid: int
    phase: str
    step: int
    progress: int
    attempt: int
    memory: int
    age: float
    sure: bool
    here: bool  # its clock is this machine's
    idle: float  # seconds without progress
    state: str
    code: int | None = None
    reason: str = ""
    beaten: float | None = None  # monotonic time of its heartbeat, by its own clock
    pace: float | None = None  # seconds a step, as its heartbeats show
    lag: int = 0  # steps behind the others

    @property
    def name(self) -> str:
        """`rank 1 (node 0, host, pid 4711)`."""
        return f"rank {self.rank} (node {self.node}, {self.host}, pid {self.pid})"


@dataclass
class _Seen:
    beat: LastChange = field(default_factory=LastChange)
    progress: LastChange = field(default_factory=LastChange)


@dataclass
class Heartbeats:
    """Reads status/*.json repeatedly and remembers the times of changes."""

    run: Path
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _pids: dict[int, int] = field(default_factory=dict)
    _searched: float = float("-inf")

    def read(self, now: Now, seconds_per_step: float | None = None) -> tuple[RankStatus, ...]:
        """All ranks that have ever written a heartbeat, in order."""
        files = sorted(_files(self.run / "status"))
        found = [self._rank(rank, path, now) for rank, path in files]
        ranks = [rank for rank in found if rank is not None]
        if any(rank.state in _SILENT for rank in ranks):
            ranks = self._with_processes(ranks, now)
        return tuple(_with_stuck(ranks, seconds_per_step))

    def _rank(self, rank: int, path: Path, now: Now) -> RankStatus | None:
        status = read_object(path)
        if not status:
            return None  # being replaced, or damaged: the next read gets it
        try:
            written = path.stat().st_mtime
        except OSError:
            return None
        identity = (status.get("attempt"), status.get("pid"))
        beat = (*identity, status.get("beat"), written)
        progress = (*identity, status.get("progress"))
        seen = self._seen.setdefault(rank, _Seen())
        silence = seen.beat.age(beat, now.monotonic)
        idle = seen.progress.age(progress, now.monotonic)
        known = now.age(number(status.get("monotonic")), written, _text(status.get("host")))
        if known is None and not seen.beat.changed:
            # From another machine, without a change so far: the file's date is the only sign.
            guess = max(silence, now.wall - written)
            sure = silence > STALLED or (silence > 2 * BEAT and guess > _GUESSED)
            return _described(rank, status, guess, sure, idle)
        age = silence if known is None else known
        return replace(_described(rank, status, age, True, idle), here=known is not None)

    def _with_processes(self, ranks: list[RankStatus], now: Now) -> list[RankStatus]:
        """Find the ranks' processes: in a container their pids differ from their own view."""
        if now.monotonic - self._searched > _EVERY:
            self._searched = now.monotonic
            self._pids = {
                rank.rank: rank.pid
                for rank in health.ranks()
                if rank.run.parts[-2:] == self.run.resolve().parts[-2:]
            }
        return [self._with_process(rank, now) for rank in ranks]

    def _with_process(self, rank: RankStatus, now: Now) -> RankStatus:
        """The state of a silent rank by its process; unchanged on another machine."""
        if rank.state not in _SILENT:
            return rank
        pid = self._pids.get(rank.rank)
        if pid is not None:
            return replace(rank, state="suspended", pid=pid) if is_stopped(pid) else rank
        if rank.host == now.host and not _is_ours(rank.pid):
            return replace(rank, state="gone")
        return rank


def _is_ours(pid: int) -> bool:
    """Whether a process of that number exists and is one of Tatara's."""
    try:
        return b"workloads" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    try:
        paths = list(folder.iterdir())
    except OSError:
        return
    for path in paths:
        if path.suffix == ".json" and path.stem.isascii() and path.stem.isdecimal():
            yield int(path.stem), path


def _described(
    rank: int, status: Mapping[str, Any], age: float, sure: bool, idle: float
) -> RankStatus:
    code, phase = whole(status.get("code")), _text(status.get("phase"))
    if code is not None:
        state = phase if phase in _LAST_PHASES else Phase.FAILED if code else Phase.DONE
    else:
        state = "ok" if age < LATE else "stalled" if sure and age >= STALLED else "late"
    return RankStatus(
        rank=rank,
        node=whole(status.get("node")) or 0,
        host=_text(status.get("host")),
        pid=whole(status.get("pid")) or 0,
        phase=phase,
        step=whole(status.get("step")) or 0,
        progress=whole(status.get("progress")) or 0,
        attempt=whole(status.get("attempt")) or 0,
        memory=whole(status.get("memory")) or 0,
        age=max(0.0, age),
        sure=sure,
        here=False,
        idle=idle,
        state=state,
        code=code,
        reason=_text(status.get("reason")),
        beaten=number(status.get("monotonic")),
    )


def _with_stuck(ranks: Iterable[RankStatus], seconds_per_step: float | None) -> list[RankStatus]:
    """Where all ranks stand still, the rank that is furthest behind holds up the others."""
    every = list(ranks)
    live = [rank for rank in every if rank.code is None]
    patience = max(_STUCK, _STUCK_STEPS * (seconds_per_step or 0))
    if not live or any(not _between_steps(rank) or rank.idle < patience for rank in live):
        return every
    if any(rank.state in TROUBLE for rank in live):
        return every  # another rank's state explains it
    behind = min(live, key=lambda rank: rank.progress)
    return [replace(rank, state="stuck") if rank is behind else rank for rank in every]


def _between_steps(rank: RankStatus) -> bool:
    """Whether a rank evaluates, saves or compiles, which takes minutes without progress."""
    return rank.phase == Phase.TRAINING and rank.step > 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
