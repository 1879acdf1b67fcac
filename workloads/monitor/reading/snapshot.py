"""A run at one moment: all data of its views."""

from collections.abc import Mapping
from dataclasses import dataclass

from workloads.monitor.reading.curve import Curve
from workloads.monitor.reading.ranks import RankStatus
from workloads.monitor.reading.record import RunEvent
from workloads.run import Run

LOST = "lost"  # the phase of a run that neither ended nor gives a sign of life
ENDING = "ending"  # rank 0 has ended; the supervisor will write the run's end


@dataclass(frozen=True)
class Snapshot:
    """Times in seconds, sizes in bytes; None for unknown values. Immutable.

    phase: that of rank 0 (starting, preparing, training, …, ending), the run's end (finished,
    stopped, failed), or lost: no end and no sign of life.
    """

    run: Run
    profile: str
    workload: str
    summary: str
    model: str
    phase: str
    active: bool
    reason: str
    step: int
    steps: int | None
    epoch: float | None
    loss: float | None
    held_out: float | None
    learning_rate: float | None
    grad_norm: float | None
    seconds_per_step: float | None
    speed: float | None
    unit: str
    mfu: float | None
    left: float | None
    started: float | None  # wall time of this launch
    elapsed: float | None
    restarts: int
    world_size: int | None
    strategy: str
    shared: bool  # whether all nodes write into this folder
    ranks: tuple[RankStatus, ...]
    curves: Mapping[str, Curve]
    events: tuple[RunEvent, ...]
    counts: Mapping[str, int]
    recent: tuple[float, ...]  # losses of the newest training rows
    broken: tuple[int, ...]  # steps whose row is not finite
    damaged: int  # lines that are no JSON object
    reading: float | None  # share of the run's files read so far, while there is more
    has_settings: bool  # whether config.json is there and can be read
    newer_format: int | None  # format of config.json, where this tatara is older than the run
    disk_free: int | None
    disk_total: int | None

    @property
    def name(self) -> str:
        """`demo/20261121-080528-3ac3`."""
        return f"{self.profile}/{self.run.id}"
