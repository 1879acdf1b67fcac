"""The ranks of a run, as their heartbeats and, on this machine, their processes show them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workloads.launch import health
from workloads.monitor.reading.clock import Now, Watched
from workloads.monitor.reading.follow import read_object, whole
from workloads.processes import is_stopped
from workloads.run.session import BEAT

LATE, STALLED = 4.0, 10.0  # seconds without a heartbeat; one is written every second
_GUESSED = 60.0  # seconds that a file's date must be past, where it is all there is to go by
_STUCK = 60.0  # seconds between two steps without progress, and at least so many steps' time:
_STUCK_STEPS = 20
_LOOK_AROUND = 2.0  # seconds between two looks at all processes
_SILENT = ("late", "stalled")
TROUBLE = ("suspended", "stalled", "gone", "failed", "stuck")


@dataclass(frozen=True)
class Rank:
    """One rank. `age`: seconds since its heartbeat; `sure` says whether that is more than a guess.

    state: ok, late, stalled, suspended, gone (its process ended without a word), stuck (alive, but
    it gets no further), done, stopped, failed.
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
    idle: float  # seconds that it was seen not to get further
    state: str
    code: int | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """`rank 1 (node 0, host, pid 4711)`."""
        return f"rank {self.rank} (node {self.node}, {self.host}, pid {self.pid})"


@dataclass
class _Seen:
    beat: Watched
    progress: Watched


@dataclass
class Heartbeats:
    """Looks at status/*.json again and again and remembers what changed when."""

    run: Path
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _pids: dict[int, int] = field(default_factory=dict)
    _looked: float = float("-inf")

    def look(self, now: Now, seconds_per_step: float | None = None) -> tuple[Rank, ...]:
        """All ranks that have ever written a heartbeat, in order."""
        found = [
            self._rank(number, path, now) for number, path in sorted(_files(self.run / "status"))
        ]
        ranks = [rank for rank in found if rank is not None]
        if any(one.state in _SILENT for one in ranks):
            ranks = self._looked_around(ranks, now)
        return tuple(_with_stuck(ranks, seconds_per_step))

    def _rank(self, number: int, path: Path, now: Now) -> Rank | None:
        status = read_object(path)
        if not status:
            return None  # replaced at this moment, or damaged: the next look has it
        try:
            written = path.stat().st_mtime
        except OSError:
            return None
        identity = (status.get("attempt"), status.get("pid"))
        beat = (*identity, status.get("beat"), written)
        progress = (*identity, status.get("progress"))
        seen = self._seen.setdefault(
            number, _Seen(Watched(beat, now.monotonic), Watched(progress, now.monotonic))
        )
        silence = seen.beat.look(beat, now.monotonic)
        idle = seen.progress.look(progress, now.monotonic)
        known = now.age(_float(status.get("monotonic")), written, _text(status.get("host")))
        if known is None and not seen.beat.changed:
            # Another machine's, and not seen to change yet: the file's date is all there is.
            guess = max(silence, now.wall - written)
            sure = silence > STALLED or (silence > 2 * BEAT and guess > _GUESSED)
            return _described(number, status, guess, sure, idle)
        age = silence if known is None else known
        return replace(_described(number, status, age, True, idle), here=known is not None)

    def _looked_around(self, ranks: list[Rank], now: Now) -> list[Rank]:
        """Find the ranks' processes: in a container they have other numbers than they say."""
        if now.monotonic - self._looked > _LOOK_AROUND:
            self._looked = now.monotonic
            self._pids = {
                one.rank: one.pid
                for one in health.ranks()
                if one.run.parts[-2:] == self.run.resolve().parts[-2:]
            }
        return [self._with_process(one, now) for one in ranks]

    def _with_process(self, one: Rank, now: Now) -> Rank:
        """What a silent rank's process tells; nothing where it is not this machine's."""
        if one.state not in _SILENT:
            return one
        pid = self._pids.get(one.rank)
        if pid is not None:
            return replace(one, state="suspended", pid=pid) if is_stopped(pid) else one
        if one.host == now.host and not _is_ours(one.pid):
            return replace(one, state="gone")
        return one


def _is_ours(pid: int) -> bool:
    """Whether a process of that number is there and is one of this platform's."""
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
        if path.suffix == ".json" and path.stem.isascii() and path.stem.isdigit():
            yield int(path.stem), path


def _described(number: int, status: Mapping[str, Any], age: float, sure: bool, idle: float) -> Rank:
    code, phase = whole(status.get("code")), _text(status.get("phase"))
    if code is not None:
        state = phase if phase in ("done", "stopped", "failed") else "failed" if code else "done"
    else:
        state = "ok" if age < LATE else "stalled" if sure and age >= STALLED else "late"
    return Rank(
        rank=number,
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
    )


def _with_stuck(ranks: Iterable[Rank], seconds_per_step: float | None) -> list[Rank]:
    """Where all ranks stand still, the one that is furthest behind holds up the others."""
    every = list(ranks)
    live = [one for one in every if one.code is None]
    patience = max(_STUCK, _STUCK_STEPS * (seconds_per_step or 0))
    if not live or any(not _between_steps(one) or one.idle < patience for one in live):
        return every
    if any(one.state in TROUBLE for one in live):
        return every  # there is a better explanation
    behind = min(live, key=lambda one: one.progress)
    return [replace(one, state="stuck") if one is behind else one for one in every]


def _between_steps(one: Rank) -> bool:
    """Evaluations, saves and a first step that compiles take minutes without a word."""
    return one.phase == "training" and one.step > 0


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
