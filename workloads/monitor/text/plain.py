"""A snapshot as plain values, for `--json`, the browser's data and other tools."""

import math
from dataclasses import asdict
from typing import Any

from workloads.monitor.reading.curve import Curve
from workloads.monitor.reading.hardware import Reading
from workloads.monitor.reading.record import Event
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.reading.trouble import troubles

FORMAT = 1
_OTHERWISE = ("run", "ranks", "curves", "events", "counts", "recent", "broken")


def as_dict(now: Snapshot, here: Reading | None = None) -> dict[str, Any]:
    """One run; `curves` are lists of [step, mean, lowest, highest], thinned out where long."""
    facts = {name: value for name, value in now.__dict__.items() if name not in _OTHERWISE}
    return {
        "format": FORMAT,
        "id": now.run.id,
        "path": str(now.run.path),
        **facts,
        "warnings": [asdict(one) for one in troubles(now)],
        "ranks": [asdict(one) for one in now.ranks],
        "events": [_event(one) for one in now.events],
        "curves": {name: _curve(curve) for name, curve in now.curves.items()},
        "machine": asdict(here) if here else None,
    }


def brief(now: Snapshot) -> dict[str, Any]:
    """One run of a list."""
    names = ("profile", "phase", "active", "step", "steps", "loss", "held_out", "restarts")
    facts = {name: now.__dict__[name] for name in names}
    started = next((one.time for one in now.events if one.name == "started"), None)
    warnings = [one.text for one in troubles(now)]
    return {
        "id": now.run.id,
        "path": str(now.run.path),
        **facts,
        "started": started,
        "warnings": warnings,
    }


def _curve(curve: Curve) -> list[list[float]]:
    return [[point.step, point.mean, point.low, point.high] for point in curve]


def _event(event: Event) -> dict[str, Any]:
    times = {"time": event.time, "monotonic": event.monotonic}
    return {"event": event.name, **times, **{k: _plain(v) for k, v in event.facts.items()}}


def _plain(value: Any) -> Any:
    """Python reads NaN from a file of JSON; others do not."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
