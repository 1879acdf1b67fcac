"""Alerts on a run: one function for each kind."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from workloads.catalogue import WORKLOADS
from workloads.monitor.numbers import byte_text, counted, span_text
from workloads.monitor.reading.curve import Curve, smooth
from workloads.monitor.reading.ranks import TROUBLE, RankStatus
from workloads.monitor.reading.record import RECENT, RunEvent
from workloads.monitor.reading.snapshot import LOST, Snapshot
from workloads.run.directory import FORMAT
from workloads.run.events import Event

_LEAST_DISK = 1 << 30
_CHECKPOINTS_TO_COME = 2
_BAD = (Event.OUT_OF_MEMORY, Event.CHECKPOINT_FAILED)
_NAMED = 3  # ranks of one state that get a line each


@dataclass(frozen=True)
class Alert:
    """One warning; `bad` where the run is in danger or at a standstill."""

    text: str
    bad: bool = False


def alerts(snapshot: Snapshot) -> list[Alert]:
    """All alerts, the worst first."""
    found = [alert for check in CHECKS for alert in check(snapshot)]
    return sorted(found, key=lambda alert: not alert.bad)


def _ended(snapshot: Snapshot) -> Iterator[Alert]:
    if snapshot.phase == Event.FAILED:
        yield Alert(f"failed: {snapshot.reason or 'no reason was written; see logs/'}", bad=True)
    if snapshot.phase == LOST:
        heard = min((rank.age for rank in snapshot.ranks), default=None)
        since = "" if heard is None else f" for {span_text(heard)}"
        yield Alert(f"no sign of life{since}, and no end was written", bad=True)


def _ranks(snapshot: Snapshot) -> Iterator[Alert]:
    if not snapshot.active:
        return
    by_state: dict[str, list[RankStatus]] = {}
    for rank in snapshot.ranks:
        if rank.state in TROUBLE:
            by_state.setdefault(rank.state, []).append(rank)
    for state, ranks in by_state.items():
        texts = [_rank(rank) for rank in ranks] if len(ranks) <= _NAMED else [_many(state, ranks)]
        yield from (Alert(text, bad=state != "slow") for text in texts)
    seen = {rank.rank for rank in snapshot.ranks}
    missing = [rank for rank in range(snapshot.world_size or 0) if rank not in seen]
    if missing and any(rank.step for rank in snapshot.ranks):
        where = "" if snapshot.shared else ": its node has an outputs folder of its own, look there"
        text = f"no heartbeat of rank {_numbers(missing)} in this folder{where}"
        yield Alert(text, bad=snapshot.shared)


def _numbers(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")


def _many(state: str, ranks: Sequence[RankStatus]) -> str:
    return f"{len(ranks)} ranks are {state}: rank {_numbers([rank.rank for rank in ranks])}"


def _rank(rank: RankStatus) -> str:
    age = f"{'' if rank.sure else 'about '}{span_text(rank.age)}"
    texts = {
        "suspended": f"is suspended: no heartbeat for {age}; `kill -CONT {rank.pid}` lets it go on",
        "stalled": f"is stalled: no heartbeat for {age}",
        "gone": "is gone: its process ended without a word",
        "stuck": f"holds up the others: nothing done for {span_text(rank.idle)} "
        f"at step {rank.step}",
        "failed": f"failed: {rank.reason or 'see its log'}",
        "behind": f"is {counted(rank.lag, 'step')} behind the others, at step {rank.step:,}",
        "slow": f"is slower than the others: {span_text(rank.pace or 0)} a step",
    }
    return f"{rank.name} {texts[rank.state]}"


def _non_finite(snapshot: Snapshot) -> Iterator[Alert]:
    dropped = snapshot.counts.get(Event.NONFINITE, 0)
    if dropped:
        last = _last(snapshot, Event.NONFINITE)
        where = f", the last at step {last.facts.get('step')}" if last else ""
        yield Alert(
            f"non-finite loss or gradient: {counted(dropped, 'step')} not applied{where}", bad=True
        )
    elif snapshot.broken:
        yield Alert(f"loss or gradient norm is not finite at step {snapshot.broken[-1]}", bad=True)


def _is_policy_gradient(snapshot: Snapshot) -> bool:
    """Whether the value of the loss is no measure of progress."""
    known = WORKLOADS.get(snapshot.workload)
    return known is not None and known.is_policy_gradient


def _rising(snapshot: Snapshot) -> Iterator[Alert]:
    if _is_policy_gradient(snapshot) or not snapshot.active:
        return
    curve = snapshot.curves.get("loss")
    if curve is not None and _rises(curve, snapshot.recent):
        best = min(smooth([point.mean for point in curve]))
        yield Alert(
            f"the loss rises: {median(snapshot.recent[-20:]):.4g}, it was down at {best:.4g}"
        )


def _rises(curve: Curve, recent: Sequence[float]) -> bool:
    """Whether the newest rows are higher than those before and clearly above the best window."""
    if len(recent) < RECENT:
        return False
    half = RECENT // 2
    before, after = median(recent[:half]), median(recent[half:])
    noise = median(abs(value - after) for value in recent[half:])
    means = [point.mean for point in curve]
    best = min(smooth(means))
    clear = max(0.1 * abs(best), 0.1 * (means[0] - best), noise)
    return after > before and after > best + clear


def _held_out(snapshot: Snapshot) -> Iterator[Alert]:
    values = [point.mean for point in snapshot.curves.get("eval_loss", ())]
    rises = len(values) >= 3 and values[-3] < values[-2] < values[-1]
    if rises and values[-1] > min(values) * 1.01 and not _is_policy_gradient(snapshot):
        yield Alert(
            f"the held-out loss rises: {values[-1]:.4g}, it was {min(values):.4g}; more steps may "
            "only learn the rows by heart"
        )


def _written(snapshot: Snapshot) -> Iterator[Alert]:
    """Alerts by events that the run itself wrote."""
    if snapshot.restarts:
        last = _last(snapshot, Event.RESTARTED)
        reason = f": {last.facts.get('reason')}" if last else ""
        yield Alert(f"restarted {_times(snapshot.restarts)}{reason}")
    texts = {
        Event.OUT_OF_MEMORY: "a GPU ran out of memory",
        Event.CHECKPOINT_FAILED: "a checkpoint could not be saved",
        Event.CHECKPOINT_DAMAGED: "a damaged checkpoint was set aside",
        Event.NO_SIGNAL: "this run may not learn",
        Event.TRACKER_FAILED: "a tracker failed; the training goes on without it",
        Event.EVALUATION_FAILED: "an evaluation failed",
        Event.PUSH_FAILED: "the model could not be pushed to the hub",
    }
    for name, text in texts.items():
        event = _last(snapshot, name)
        if event is not None:
            yield Alert(f"{text} ({event.text()})", bad=name in _BAD)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _last(snapshot: Snapshot, name: str) -> RunEvent | None:
    return next((event for event in reversed(snapshot.events) if event.name == name), None)


def _disk(snapshot: Snapshot) -> Iterator[Alert]:
    if snapshot.disk_free is None or not snapshot.active:
        return
    saved = _last(snapshot, Event.CHECKPOINT)
    size = saved.facts.get("bytes") if saved else None
    needed = _CHECKPOINTS_TO_COME * size if isinstance(size, int) else 0
    if snapshot.disk_free < max(_LEAST_DISK, needed):
        more = f"; a checkpoint takes {byte_text(size)}" if isinstance(size, int) else ""
        yield Alert(
            f"the disk is nearly full: {byte_text(snapshot.disk_free)} free{more}", bad=True
        )


def _files(snapshot: Snapshot) -> Iterator[Alert]:
    if snapshot.damaged:
        lines = counted(snapshot.damaged, "line")
        yield Alert(f"{lines} of the run's .jsonl files cannot be read")
    run = snapshot.run
    kept = [
        path.name
        for path in (run.metrics, run.events, run.evaluations)
        if path.exists() and not os.access(path, os.R_OK)
    ]
    if kept:
        yield Alert(f"{', '.join(kept)}: not yours to read, so what is shown lacks them", bad=True)
    if not snapshot.has_settings:
        yield Alert("config.json cannot be read: the run's settings are missing here")
    if snapshot.newer_format is not None:
        yield Alert(
            f"the run is of format {snapshot.newer_format}, newer than this tatara reads "
            f"({FORMAT}): some of it may be missing here; update tatara"
        )


CHECKS: tuple[Callable[[Snapshot], Iterator[Alert]], ...] = (
    _ended,
    _ranks,
    _non_finite,
    _rising,
    _held_out,
    _written,
    _disk,
    _files,
)
