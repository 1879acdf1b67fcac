"""What a person should know of at once: one function a kind of trouble."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from workloads.catalogue import WORKLOADS
from workloads.monitor.numbers import byte_text, span_text
from workloads.monitor.reading.curve import Curve, smooth
from workloads.monitor.reading.ranks import Rank
from workloads.monitor.reading.record import RECENT
from workloads.monitor.reading.snapshot import Snapshot

_LEAST_DISK = 1 << 30
_CHECKPOINTS_TO_COME = 2


@dataclass(frozen=True)
class Trouble:
    """One warning; `bad` where the run is in danger or at a standstill."""

    text: str
    bad: bool = False


def troubles(now: Snapshot) -> list[Trouble]:
    """Everything there is to warn of, the worst first."""
    found = [one for check in CHECKS for one in check(now)]
    return sorted(found, key=lambda one: not one.bad)


def _is_policy_gradient(now: Snapshot) -> bool:
    known = WORKLOADS.get(now.workload)
    return known is not None and known.is_policy_gradient


def _ended(now: Snapshot) -> Iterator[Trouble]:
    if now.phase == "failed":
        yield Trouble(f"failed: {now.reason or 'no reason was written; see logs/'}", bad=True)
    if now.phase == "lost":
        heard = min((one.age for one in now.ranks), default=None)
        since = "" if heard is None else f" for {span_text(heard)}"
        yield Trouble(f"no sign of life{since}, and it never said that it ended", bad=True)


def _ranks(now: Snapshot) -> Iterator[Trouble]:
    if not now.active:
        return
    for one in now.ranks:
        if text := _rank(one):
            yield Trouble(text, bad=True)
    seen = {one.rank for one in now.ranks}
    missing = [rank for rank in range(now.world_size or 0) if rank not in seen]
    if missing and any(one.step for one in now.ranks):
        names = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        where = "" if now.shared else ": its node has an outputs folder of its own, look there"
        yield Trouble(f"no heartbeat of rank {names} in this folder{where}", bad=now.shared)


def _rank(one: Rank) -> str | None:
    age = f"{'' if one.sure else 'about '}{span_text(one.age)}"
    if one.state == "suspended":
        return (
            f"{one.name} is suspended: no heartbeat for {age}; `kill -CONT {one.pid}` lets it go on"
        )
    if one.state == "stalled":
        return f"{one.name} is stalled: no heartbeat for {age}"
    if one.state == "gone":
        return f"{one.name} is gone: its process ended without a word"
    if one.state == "stuck":
        idle = span_text(one.idle)
        return f"{one.name} holds up the others: nothing done for {idle} at step {one.step}"
    if one.state == "failed":
        return f"{one.name} failed: {one.reason or 'see its log'}"
    return None


def _non_finite(now: Snapshot) -> Iterator[Trouble]:
    dropped = now.counts.get("nonfinite", 0)
    if dropped:
        last = next((one for one in reversed(now.events) if one.name == "nonfinite"), None)
        where = f", the last at step {last.facts.get('step')}" if last else ""
        yield Trouble(f"non-finite loss or gradient: {dropped} steps not applied{where}", bad=True)
    elif now.broken:
        yield Trouble(f"loss or gradient norm is not finite at step {now.broken[-1]}", bad=True)


def _rising(now: Snapshot) -> Iterator[Trouble]:
    # The loss of a policy gradient says nothing by its height.
    if _is_policy_gradient(now) or not now.active:
        return
    curve = now.curves.get("loss")
    if curve is not None and _rises(curve, now.recent):
        best = min(smooth([point.mean for point in curve]))
        yield Trouble(f"the loss rises: {median(now.recent[-20:]):.4g}, it was down at {best:.4g}")


def _rises(curve: Curve, recent: Sequence[float]) -> bool:
    """Whether the newest rows are higher than those before and clearly above the best stretch."""
    if len(recent) < RECENT:
        return False
    half = RECENT // 2
    before, after = median(recent[:half]), median(recent[half:])
    noise = median(abs(value - after) for value in recent[half:])
    means = [point.mean for point in curve]
    best = min(smooth(means))
    clear = max(0.1 * abs(best), 0.1 * (means[0] - best), noise)
    return after > before and after > best + clear


def _held_out(now: Snapshot) -> Iterator[Trouble]:
    values = [point.mean for point in now.curves.get("eval_loss", ())]
    rises = len(values) >= 3 and values[-3] < values[-2] < values[-1]
    if rises and values[-1] > min(values) * 1.01 and not _is_policy_gradient(now):
        yield Trouble(
            f"the held-out loss rises: {values[-1]:.4g}, it was {min(values):.4g}; more steps may "
            "only learn the rows by heart"
        )


def _told(now: Snapshot) -> Iterator[Trouble]:
    """Troubles that the run itself wrote down."""
    if now.restarts:
        last = next((one for one in reversed(now.events) if one.name == "restarted"), None)
        reason = f": {last.facts.get('reason')}" if last else ""
        yield Trouble(f"restarted {_times(now.restarts)}{reason}")
    words = {
        "oom": "a GPU ran out of memory",
        "checkpoint failed": "a checkpoint could not be saved",
        "checkpoint damaged": "a damaged checkpoint was set aside",
        "tracker failed": "a tracker failed; the training goes on without it",
    }
    for name, text in words.items():
        event = next((one for one in reversed(now.events) if one.name == name), None)
        if event is not None:
            yield Trouble(f"{text} ({event.text()})", bad=name in ("oom", "checkpoint failed"))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _disk(now: Snapshot) -> Iterator[Trouble]:
    if now.disk_free is None or not now.active:
        return
    saved = next((one for one in reversed(now.events) if one.name == "checkpoint"), None)
    size = saved.facts.get("bytes") if saved else None
    needed = _CHECKPOINTS_TO_COME * size if isinstance(size, int) else 0
    if now.disk_free < max(_LEAST_DISK, needed):
        more = f"; a checkpoint takes {byte_text(size)}" if isinstance(size, int) else ""
        yield Trouble(f"the disk is nearly full: {byte_text(now.disk_free)} free{more}", bad=True)


def _files(now: Snapshot) -> Iterator[Trouble]:
    if now.damaged:
        yield Trouble(f"{now.damaged} lines of the run's .jsonl files cannot be read")


CHECKS: tuple[Callable[[Snapshot], Iterator[Trouble]], ...] = (
    _ended,
    _ranks,
    _non_finite,
    _rising,
    _held_out,
    _told,
    _disk,
    _files,
)
