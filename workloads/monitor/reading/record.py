"""What a run has written so far: its metrics as curves, its events, and what follows from them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from workloads.monitor.numbers import byte_text
from workloads.monitor.reading.curve import CAPACITY, Curve
from workloads.monitor.reading.follow import Follower, Row, is_broken, number, whole
from workloads.run import Run

ENDED = ("finished", "stopped", "failed")
_NO_METRICS = ("step", "time", "monotonic", "batches")
_MOST_METRICS = 64
_LONG = ("param_groups", "rows_by_rank", "path", "fingerprint")
RECENT = 40  # training rows that trends and speeds are taken from


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl; `facts` are all its fields but name and times."""

    name: str
    time: float | None
    monotonic: float | None
    facts: Mapping[str, Any]

    def text(self, between: str = "  ") -> str:
        """What it says beside its name, in a line; the long facts are left to the report."""
        shown = [(name, value) for name, value in self.facts.items() if name not in _LONG]
        return between.join(_fact(name, value) for name, value in shown if value not in ("", None))


def _fact(name: str, value: Any) -> str:
    if name in ("reason", "text") and isinstance(value, str):
        return value
    if name == "bytes" and (size := number(value)) is not None:
        return byte_text(size)
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    if isinstance(value, list):
        return f"{name} {', '.join(map(str, value))}"
    return f"{name} {value}"


@dataclass
class Metrics:
    """metrics.jsonl and evaluations.jsonl: a curve of every number, and the newest rows."""

    run: Run
    capacity: int = CAPACITY
    tail: int | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    training: Row = field(default_factory=dict)  # the newest row with a loss
    recent: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))
    broken: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self._follow_training()
        self._follow_evaluations()

    def _follow_training(self) -> None:
        again = partial(self._begin_again, self._follow_evaluations)
        self.follower = Follower(self.run.metrics, again, self.tail)

    def _follow_evaluations(self) -> None:
        again = partial(self._begin_again, self._follow_training)
        self.evaluations = Follower(self.run.evaluations, again, self.tail)

    def _begin_again(self, follow_other: Callable[[], None]) -> None:
        """One file was replaced: forget both, since their numbers are not kept apart."""
        self.curves.clear()
        self.training = {}
        self.recent.clear()
        self.broken.clear()
        follow_other()

    @property
    def damaged(self) -> int:
        """Lines of both files that are no JSON object."""
        return self.follower.damaged + self.evaluations.damaged

    def read(self) -> None:
        self._take_all(self.follower)
        self._take_all(self.evaluations)

    def _take_all(self, follower: Follower) -> None:
        for row in follower.rows():
            step = whole(row.get("step"))
            if step is not None and step >= 0:
                self._take(step, row)

    def _take(self, step: int, row: Row) -> None:
        if "loss" in row:
            while self.recent and (whole(self.recent[-1]["step"]) or 0) >= step:
                self.recent.pop()
            self.training = row
            self.recent.append(row)
            if is_broken(row["loss"]) or is_broken(row.get("grad_norm")):
                self.broken.append(step)
        left_out = _NO_METRICS if "loss" in row else (*_NO_METRICS, "epoch")
        for name, value in row.items():
            found = number(value)
            if found is not None and name not in left_out:
                self._curve(name).add(step, found)

    def _curve(self, name: str) -> Curve:
        if name not in self.curves and len(self.curves) >= _MOST_METRICS:
            return Curve(2)  # a stray one that nobody sees
        return self.curves.setdefault(name, Curve(self.capacity))

    def typical(self, name: str, rows: int = 20) -> float | None:
        """Median of a metric over the newest training rows: one slow step is no speed."""
        found = [number(row.get(name)) for row in list(self.recent)[-rows:]]
        known = [value for value in found if value is not None]
        return median(known) if known else None


@dataclass
class Events:
    """events.jsonl: the newest ones whole, and what the run is from all of them."""

    path: Path
    most: int = 200
    newest: deque[Event] = field(default_factory=deque)
    counts: dict[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # facts of the last `training`
    launched: Event | None = None  # `started` of this launch's first attempt
    ended: Event | None = None
    evaluated: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.newest = deque(maxlen=self.most)
        self.follower = Follower(self.path, self._forget)

    def _forget(self) -> None:
        self.newest.clear()
        self.counts.clear()
        self.evaluated.clear()
        self.training = {}
        self.launched = self.ended = None

    def read(self) -> None:
        for row in self.follower.rows():
            name = row.pop("event", None)
            if isinstance(name, str):
                times = number(row.pop("time", None)), number(row.pop("monotonic", None))
                self._take(Event(name, *times, row))

    def _take(self, event: Event) -> None:
        self.newest.append(event)
        self.counts[event.name] = self.counts.get(event.name, 0) + 1
        if event.name in ENDED:
            self.ended = event
            return
        if event.name == "started":
            self.ended = None
            if self.launched is None or not whole(event.facts.get("attempt")):
                self.launched = event
                self.counts.pop("restarted", None)  # those of an earlier launch
        if event.name == "training":
            self.training = event.facts
        if event.name == "evaluated":
            self.evaluated[str(event.facts.get("when"))] = event.facts

    def last(self, name: str) -> Event | None:
        return next((event for event in reversed(self.newest) if event.name == name), None)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is in the run's folder; `size` in bytes where it is whole."""

    step: int
    name: str
    size: int | None


def checkpoints(run: Run) -> Iterator[Checkpoint]:
    """The checkpoints there are, by step; whole ones are those with a seal."""
    from workloads.monitor.reading.follow import read_object
    from workloads.run.integrity import PREFIX, SEAL

    found = []
    for path in run.checkpoints.glob(f"{PREFIX}*"):
        step = path.name.removeprefix(PREFIX)
        if step.isdigit():
            files = read_object(path / SEAL).get("files")
            sizes = files.values() if isinstance(files, dict) else ()
            known = [whole(one.get("size")) or 0 for one in sizes if isinstance(one, dict)]
            found.append(Checkpoint(int(step), path.name, sum(known) if known else None))
    yield from sorted(found, key=lambda one: one.step)
