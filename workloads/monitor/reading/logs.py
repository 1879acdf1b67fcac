"""The end of a rank's log, to be shown with its error."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.monitor.numbers import clean
from workloads.monitor.reading.ranks import TROUBLE, RankStatus
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run.events import Event

_TAIL = 1 << 16  # bytes read from the end of a log
_WIDEST = 2000  # characters of a line that are kept


@dataclass(frozen=True)
class LogTail:
    """The last lines of a log without control characters; `whole` if they are all."""

    path: Path
    lines: tuple[str, ...]
    whole: bool


def log_of(snapshot: Snapshot, rank: RankStatus) -> Path:
    return snapshot.run.path / "logs" / f"{rank.node}-{rank.rank}.log"


def notable_ranks(snapshot: Snapshot) -> list[RankStatus]:
    """The ranks whose logs are of interest: those in trouble, else the first one."""
    in_trouble = [rank for rank in snapshot.ranks if rank.state in TROUBLE]
    # Ranks that failed themselves come before those that only lost their peer.
    failed = [rank for rank in in_trouble if rank.state == "failed"]
    return [*failed, *(rank for rank in in_trouble if rank not in failed)] or list(
        snapshot.ranks[:1]
    )


def error_log(snapshot: Snapshot, most: int) -> LogTail | None:
    """The log with the failure of the run or a rank; None where none has failed."""
    failed = [rank for rank in notable_ranks(snapshot) if rank.state in ("failed", "gone")]
    if snapshot.phase != Event.FAILED and not (failed and snapshot.active):
        return None
    ranks = [log_of(snapshot, rank) for rank in failed or notable_ranks(snapshot)]
    # Without heartbeats, or where they are elsewhere: the newest log.
    others = sorted((snapshot.run.path / "logs").glob("*.log"), key=_written, reverse=True)
    tails = (log_tail(path, most) for path in (*ranks, *others))
    return next((tail for tail in tails if tail), None)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def log_tail(path: Path, most: int) -> LogTail | None:
    """At most so many lines from the end of a log; None where it is not there or is empty."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return None
    lines = _as_shown(text.rstrip("\n").split("\n"))
    if size > _TAIL:
        lines = lines[1:]  # the first one is cut
    if not any(lines):
        return None
    return LogTail(path, tuple(lines[-most:]), size <= _TAIL and len(lines) <= most)


def _as_shown(lines: Sequence[str]) -> list[str]:
    """The last state of a line that was overwritten, as progress bars are."""
    return [clean(line.rpartition("\r")[2])[:_WIDEST].rstrip() for line in lines]
