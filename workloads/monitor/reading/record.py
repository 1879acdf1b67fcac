"""What a run has written so far: its metrics as curves, its events, and what follows from them."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from workloads.monitor.numbers import byte_text
from workloads.monitor.reading.curve import CAPACITY, Curve
from workloads.monitor.reading.follow import Follower, Row, is_broken, number, read_object, whole
from workloads.run import Run
from workloads.run.events import Event
from workloads.run.integrity import PREFIX, SEAL

ENDED = (Event.FINISHED, Event.STOPPED, Event.FAILED)
BAD_EVENTS = (
    Event.FAILED,
    Event.OUT_OF_MEMORY,
    Event.NONFINITE,
    Event.CHECKPOINT_FAILED,
    Event.CHECKPOINT_DAMAGED,
    Event.EVALUATION_FAILED,
    Event.PUSH_FAILED,
)
_NO_METRICS = ("step", "time", "monotonic", "batches")
_MOST_METRICS = 64
_LONG = ("param_groups", "rows_by_rank", "path", "fingerprint")
_NUMBERS = {int, float}
TAIL = 1 << 16  # bytes at a file's end that hold the newest rows
RECENT = 40  # training rows that trends and speeds are taken from


@dataclass(frozen=True)
class RunEvent:
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
class Newest:
    """The newest rows of training and of evaluations."""

    training: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))
    evaluations: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))

    def take(self, rows: Sequence[Row]) -> None:
        """Rows as they come; a step that comes again takes back what was known from there on."""
        for row in rows:
            kept = self.training if "loss" in row else self.evaluations
            while kept and kept[-1]["step"] >= row["step"]:
                kept.pop()
            kept.append(row)

    def clear(self) -> None:
        self.training.clear()
        self.evaluations.clear()


@dataclass
class Metrics:
    """metrics.jsonl and evaluations.jsonl: a curve of every number, and the newest rows.

    Long files are read in parts. Until they are read, the newest rows come from their ends.
    """

    run: Run
    capacity: int = CAPACITY
    tail: int | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    broken: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self._in_order, self._ahead = Newest(), Newest()
        paths = (self.run.metrics, self.run.evaluations)
        self.followers = [Follower(path, self._begin_again, self.tail) for path in paths]
        self._tails: list[Follower] = []

    def _begin_again(self) -> None:
        """One file was replaced: forget both, since their numbers are not kept apart."""
        self.curves.clear()
        self.broken.clear()
        self._in_order.clear()
        for follower in self.followers:
            follower.restart()

    @property
    def _is_behind(self) -> bool:
        return any(follower.behind for follower in self.followers)

    @property
    def newest(self) -> Newest:
        return self._ahead if self._is_behind else self._in_order

    @property
    def training(self) -> Row:
        """The newest row with a loss."""
        rows = self.newest.training
        return rows[-1] if rows else {}

    @property
    def held_out(self) -> float | None:
        """The newest held-out loss."""
        losses = (number(row.get("eval_loss")) for row in reversed(self.newest.evaluations))
        return next((loss for loss in losses if loss is not None), None)

    @property
    def damaged(self) -> int:
        """Lines of both files that are no JSON object."""
        return sum(follower.damaged for follower in self.followers)

    def read(self) -> None:
        """What is new, up to about `LIMIT` bytes of each file."""
        for follower in self.followers:
            for batch in follower.batches():
                for rows in _rising(batch):
                    self._take(rows)
                    self._in_order.take(rows[-RECENT:])
        if not self._is_behind:
            self._tails = []
            return
        if not self._tails:
            self._ahead.clear()
            paths = (follower.path for follower in self.followers)
            self._tails = [Follower(path, self._ahead.clear, TAIL) for path in paths]
        for tail in self._tails:
            self._ahead.take(list(filter(_has_step, tail.rows())))

    def _take(self, rows: Sequence[Row]) -> None:
        """Rows whose steps rise; those with the same names are one table."""
        for names, group in groupby(rows, key=tuple):
            table = dict(
                zip(names, zip(*(row.values() for row in group), strict=True), strict=True)
            )
            steps, is_training = table["step"], "loss" in table
            for name, values in table.items():
                if is_training and name in ("loss", "grad_norm"):
                    self._note_broken(steps, values)
                if name not in _NO_METRICS and (is_training or name != "epoch"):
                    self._add(name, steps, values)

    def _note_broken(self, steps: Sequence[int], values: Sequence[Any]) -> None:
        if not _all_finite(values):
            found = (step for step, value in zip(steps, values, strict=True) if is_broken(value))
            self.broken.extend(step for step in found if step not in self.broken)

    def _add(self, name: str, steps: Sequence[int], values: Sequence[Any]) -> None:
        if not _all_finite(values):
            pairs = [
                (step, value)
                for step, given in zip(steps, values, strict=True)
                if (value := number(given)) is not None
            ]
            steps, values = [step for step, _ in pairs], [value for _, value in pairs]
        curve = self.curves.get(name)
        if curve is None:
            if not values or len(self.curves) >= _MOST_METRICS:
                return
            curve = self.curves[name] = Curve(self.capacity)
        curve.extend(steps, values)

    def typical(self, name: str, rows: int = 20) -> float | None:
        """Median of a metric over the newest training rows: one slow step is no speed."""
        found = [number(row.get(name)) for row in list(self.newest.training)[-rows:]]
        known = [value for value in found if value is not None]
        return median(known) if known else None


def _has_step(row: Row) -> bool:
    """Whether a row has a step; written as 3.0 it is 3 from here on."""
    step = row.get("step")
    if type(step) is not int:
        step = whole(step)
        row["step"] = step
    return step is not None and 0 <= step < 1 << 62


def _rising(batch: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows with a step, cut where a step is not above the one before: there a restart was."""
    part: list[Row] = []
    for row in filter(_has_step, batch):
        if part and row["step"] <= part[-1]["step"]:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _all_finite(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers; looks at them in C."""
    try:
        return set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values))
    except OverflowError:
        return False


@dataclass
class Events:
    """events.jsonl: the newest ones whole, and what the run is from all of them.

    Until a long file is read, the newest events and the end of the run come from the file's end.
    """

    path: Path
    most: int = 200
    tail: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # facts of the last `training`
    launched: RunEvent | None = None  # `started` of this launch's first attempt
    evaluated: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _ended: RunEvent | None = None
    _ahead: "Events | None" = None

    def __post_init__(self) -> None:
        self._newest: deque[RunEvent] = deque(maxlen=self.most)
        self.follower = Follower(self.path, self._forget, self.tail)

    def _forget(self) -> None:
        self._newest.clear()
        self.counts.clear()
        self.evaluated.clear()
        self.training = {}
        self.launched = self._ended = self._ahead = None

    @property
    def newest(self) -> Sequence[RunEvent]:
        """The last events, the newest at the end."""
        return self._ahead.newest if self._ahead else self._newest

    @property
    def ended(self) -> RunEvent | None:
        """How this launch ended; None while it goes on."""
        return self._ahead.ended if self._ahead else self._ended

    def read(self) -> None:
        """What is new, up to about `LIMIT` bytes."""
        for row in self.follower.rows():
            name = row.pop("event", None)
            if isinstance(name, str):
                times = number(row.pop("time", None)), number(row.pop("monotonic", None))
                self._take(RunEvent(name, *times, row))
        if not self.follower.behind:
            self._ahead = None
            return
        self._ahead = self._ahead or Events(self.path, self.most, TAIL)
        self._ahead.read()

    def _take(self, event: RunEvent) -> None:
        self._newest.append(event)
        self.counts[event.name] = self.counts.get(event.name, 0) + 1
        if event.name in ENDED:
            self._ended = event
        elif event.name == Event.STARTED:
            self._ended = None
            if self.launched is None or not whole(event.facts.get("attempt")):
                self.launched = event
                self.counts.pop(Event.RESTARTED, None)  # those of an earlier launch
        elif event.name == Event.TRAINING:
            self.training = event.facts
        elif event.name == Event.EVALUATED:
            self.evaluated[str(event.facts.get("when"))] = event.facts

    def last(self, name: str) -> RunEvent | None:
        return next((event for event in reversed(self.newest) if event.name == name), None)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is in the run's folder; `size` in bytes where it is whole."""

    step: int
    name: str
    size: int | None


def checkpoints(run: Run) -> Iterator[SavedCheckpoint]:
    """The checkpoints there are, by step; whole ones are those with a seal."""
    found = []
    for path in run.checkpoints.glob(f"{PREFIX}*"):
        step = path.name.removeprefix(PREFIX)
        if step.isdigit():
            files = read_object(path / SEAL).get("files")
            sizes = files.values() if isinstance(files, dict) else ()
            known = [whole(one.get("size")) or 0 for one in sizes if isinstance(one, dict)]
            found.append(SavedCheckpoint(int(step), path.name, sum(known) if known else None))
    yield from sorted(found, key=lambda one: one.step)
