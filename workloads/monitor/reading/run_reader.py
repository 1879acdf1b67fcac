"""Reads a run directory repeatedly during a run."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.monitor.reading.clock import LastChange, Now
from workloads.monitor.reading.curve import CAPACITY, Curve
from workloads.monitor.reading.flops import Flops
from workloads.monitor.reading.follow import number, read_object, whole
from workloads.monitor.reading.hardware import GpuReading
from workloads.monitor.reading.ranks import Heartbeats, RankStatus
from workloads.monitor.reading.record import Events, Metrics, RunEvent
from workloads.monitor.reading.snapshot import ENDING, LOST, Snapshot
from workloads.monitor.reading.stragglers import Stragglers
from workloads.run import Run
from workloads.run.directory import FORMAT
from workloads.run.events import Event, Phase

_SILENT = 90.0  # seconds of silence after which a run without an end counts as lost
_STANDSTILL = 10  # factor on the usual pace
_UNITS = {"tokens_per_second": "tokens/s", "samples_per_second": "samples/s"}


@dataclass
class RunReader:
    """Reads one run as it grows; never writes, and holds bounded memory.

    tail: read no more of metrics.jsonl than its last so many bytes, for a line in a list.
    """

    run: Run
    capacity: int = CAPACITY
    tail: int | None = None
    most_events: int = 200
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.run, self.capacity, self.tail)
        self.events = Events(self.run.events, self.most_events)
        self.heartbeats = Heartbeats(self.run.path)
        self.stragglers = Stragglers()
        self._format: int | None = None
        self._flops = Flops(self.run)
        self._event_change = LastChange()

    @property
    def pending(self) -> bool:
        """Whether a next reading may find more, even without new writes of the run."""
        return self._flops.pending

    def read(self, gpus: Sequence[GpuReading] = ()) -> Snapshot:
        """Snapshot of the run; `gpus` of this machine, for the utilisation of their peak.

        Of a long run only a part is read at first: see `Snapshot.reading`.
        """
        now = Now()
        self._read_settings()
        self.events.read()
        self.metrics.read()
        pace = self.metrics.typical("seconds_per_step")
        ranks = self.heartbeats.read(now, pace)
        phase, active = self._phase(ranks, now)
        if active:
            ranks = tuple(self.stragglers.mark(ranks, pace))
        return self._snapshot(now, ranks, phase, active, gpus)

    def window(self, first: float, last: float) -> dict[str, Curve]:
        """The curves of training between two steps, closer; empty where that would take long."""
        return self.metrics.window(first, last)

    def read_all(self) -> Snapshot:
        """Snapshot of the run, with all its files read to their ends."""
        snapshot = self.read()
        while snapshot.reading is not None:
            snapshot = self.read()
        return snapshot

    def _read_settings(self) -> None:
        """Read config.json, which never changes, and the manifest, which grows meanwhile."""
        if not self.config:
            dump = read_object(self.run.path / "config.json")
            self.config = _mapping(dump.get("config"))
            self._format = whole(dump.get("format"))
        if "data" not in self.manifest:
            self.manifest = read_object(self.run.path / "manifest.json")

    def _phase(self, ranks: Sequence[RankStatus], now: Now) -> tuple[str, bool]:
        if self.events.ended is not None:
            return self.events.ended.name, False
        live = [rank for rank in ranks if rank.code is None]
        known = min((rank.age for rank in ranks), default=float("inf"))
        silence = min(known, self._since_event(now))
        if silence > _SILENT and not any(rank.state == "suspended" for rank in live):
            return LOST, False
        first = next((rank for rank in ranks if rank.rank == 0), None)
        if first is None:
            return Phase.STARTING, True
        return (ENDING if first.code is not None else first.phase or Phase.STARTING), True

    def _since_event(self, now: Now) -> float:
        """Seconds since the newest event, as far as they are known here."""
        newest = self.events.newest[-1] if self.events.newest else None
        if newest is None:
            written = _written(self.run.path / "config.json")
            return float("inf") if written is None else max(0.0, now.wall - written)
        silence = self._event_change.age((newest.name, newest.time), now.monotonic)
        written = _written(self.run.events)
        if written is None:
            return silence
        age = now.age(newest.monotonic, written, self._host)
        if age is not None:
            return age
        # From another machine or an earlier boot: the file's date is an estimate.
        return silence if self._event_change.changed else max(silence, now.wall - written)

    @property
    def _host(self) -> str:
        """The machine of node 0, which writes events and metrics."""
        hosts = self.manifest.get("hosts")
        return str(hosts[0]) if isinstance(hosts, list) and hosts else ""

    def _snapshot(
        self,
        now: Now,
        ranks: tuple[RankStatus, ...],
        phase: str,
        active: bool,
        gpus: Sequence[GpuReading],
    ) -> Snapshot:
        metrics, events = self.metrics, self.events
        step = self._step(ranks, active)
        steps = whole(events.training.get("max_steps"))
        unit = next((name for name in _UNITS if name in metrics.training), "")
        behind = [*metrics.followers, events.follower]
        share = sum(f.offset for f in behind) / max(1, sum(f.offset + f.behind for f in behind))
        free, total = _disk(self.run)
        return Snapshot(
            run=self.run,
            profile=str(self.config.get("name") or self.run.path.parent.name),
            workload=str(self.config.get("workload") or ""),
            summary=str(self.config.get("summary") or ""),
            model=str(_mapping(self.config.get("model")).get("name") or ""),
            phase=phase,
            active=active,
            reason=_reason(events.ended),
            step=step,
            steps=steps,
            epoch=number(metrics.training.get("epoch")),
            loss=number(metrics.training.get("loss")),
            held_out=metrics.held_out,
            learning_rate=number(metrics.training.get("learning_rate")),
            grad_norm=number(metrics.training.get("grad_norm")),
            seconds_per_step=metrics.typical("seconds_per_step"),
            speed=metrics.typical(unit) if unit else None,
            unit=_UNITS.get(unit, ""),
            mfu=self._mfu(gpus, ranks),
            left=self._left(step, steps) if active else None,
            started=events.launched.time if events.launched else None,
            elapsed=self._elapsed(now, active),
            restarts=events.counts.get(Event.RESTARTED, 0),
            world_size=whole(events.training.get("world_size")),
            strategy=str(events.training.get("strategy") or ""),
            shared=self.manifest.get("shared_outputs") is not False,
            ranks=ranks,
            curves={name: curve.copy() for name, curve in metrics.curves.items()},
            events=tuple(events.newest),
            counts=dict(events.counts),
            recent=tuple(
                loss for row in metrics.newest.training if (loss := number(row["loss"])) is not None
            ),
            broken=tuple(metrics.broken),
            damaged=metrics.damaged + events.follower.damaged,
            reading=share if any(follower.behind for follower in behind) else None,
            has_settings=bool(self.config),
            newer_format=self._format if (self._format or 0) > FORMAT else None,
            disk_free=free,
            disk_total=total,
        )

    def _step(self, ranks: Sequence[RankStatus], active: bool) -> int:
        written = whole(self.metrics.training.get("step")) or 0
        first = next((rank for rank in ranks if rank.rank == 0), None)
        if first is None:
            return written
        begun = first.phase not in (Phase.STARTING, Phase.PREPARING)
        return first.step if active and begun else max(first.step, written)

    def _left(self, step: int, steps: int | None) -> float | None:
        """Seconds to the last step, at the mean pace, which counts evaluations and saves."""
        paces = [number(row.get("seconds_per_step")) for row in self.metrics.newest.training]
        usual = self.metrics.typical("seconds_per_step")
        if usual is None or steps is None:
            return None
        # A row after a standstill does not predict the next steps.
        known = [min(pace, _STANDSTILL * usual) for pace in paces if pace is not None]
        return max(0, steps - step) * sum(known) / len(known)

    def _elapsed(self, now: Now, active: bool) -> float | None:
        """Seconds since this launch began, up to now or to its last event."""
        launched, ended = self.events.launched, self.events.ended
        if launched is None or launched.monotonic is None:
            return None
        last = ended.monotonic if ended else number(self.metrics.training.get("monotonic"))
        if active and self._host == now.host:
            last = now.monotonic
        span = None if last is None else last - launched.monotonic
        return span if span is not None and span >= 0 else None

    def _mfu(self, gpus: Sequence[GpuReading], ranks: Sequence[RankStatus]) -> float | None:
        """MFU as measured by the run; else from its tokens, if it runs on this machine's GPUs."""
        measured = self.metrics.typical("mfu")
        if measured is not None:
            return measured
        tokens = self.metrics.typical("tokens_per_second")
        if not gpus or tokens is None or not any(rank.here for rank in ranks):
            return None
        world = whole(self.events.training.get("world_size")) or 1
        return self._flops.utilisation(tokens, world, gpus)


def _reason(ended: RunEvent | None) -> str:
    reason = ended.facts.get("reason") if ended else None
    return reason if isinstance(reason, str) else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _disk(run: Run) -> tuple[int | None, int | None]:
    try:
        usage = shutil.disk_usage(run.path)
    except OSError:
        return None, None
    return usage.free, usage.total
