"""A snapshot as plain values, for `--json`, the browser's data and other tools."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.curve import Curve, Point
from workloads.monitor.reading.hardware import MachineReading
from workloads.monitor.reading.record import RunEvent
from workloads.monitor.reading.snapshot import Snapshot

FORMAT = 1
_OTHERWISE = ("run", "ranks", "curves", "events", "counts", "recent", "broken")


def as_dict(snapshot: Snapshot, here: MachineReading | None = None) -> dict[str, Any]:
    """One run; `curves` are lists of [step, mean, lowest, highest], thinned out where long."""
    facts = {name: value for name, value in vars(snapshot).items() if name not in _OTHERWISE}
    return {
        "format": FORMAT,
        "id": snapshot.run.id,
        "path": str(snapshot.run.path),
        **facts,
        "warnings": [asdict(alert) for alert in alerts(snapshot)],
        "ranks": [asdict(rank) for rank in snapshot.ranks],
        "events": [_event(event) for event in snapshot.events],
        "curves": {name: _curve(curve) for name, curve in snapshot.curves.items()},
        "machine": asdict(here) if here else None,
    }


def brief(snapshot: Snapshot) -> dict[str, Any]:
    """One run of a list."""
    return {
        "id": snapshot.run.id,
        "path": str(snapshot.run.path),
        "profile": snapshot.profile,
        "workload": snapshot.workload,
        "model": snapshot.model,
        "phase": snapshot.phase,
        "active": snapshot.active,
        "step": snapshot.step,
        "steps": snapshot.steps,
        "loss": snapshot.loss,
        "held_out": snapshot.held_out,
        "restarts": snapshot.restarts,
        "started": snapshot.started,
        "elapsed": snapshot.elapsed,
        "reading": snapshot.reading,
        "warnings": [alert.text for alert in alerts(snapshot)],
    }


def _curve(curve: Curve) -> list[list[float]]:
    return [[point.step, point.mean, point.low, point.high] for point in curve]


def rows_of(points: Iterable[Point]) -> list[list[float]]:
    """All fields of each point: step, mean, lowest, highest, first step, number of rows."""
    return [
        [point.step, point.mean, point.low, point.high, point.first, point.count]
        for point in points
    ]


def _event(event: RunEvent) -> dict[str, Any]:
    times = {"time": event.time, "monotonic": event.monotonic}
    return {"event": event.name, **times, **{k: _plain(v) for k, v in event.facts.items()}}


def _plain(value: Any) -> Any:
    """Replace values that are not finite by None: only Python reads NaN in JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
