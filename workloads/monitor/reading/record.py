"""A run's files so far: metrics as curves, events, and derived facts."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from workloads.monitor.numbers import byte_text
from workloads.monitor.reading.curve import CAPACITY, Curve
from workloads.monitor.reading.follow import (
    CHUNK,
    Follower,
    Row,
    is_broken,
    number,
    read_object,
    whole,
)
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
_LONGEST_FACT = 300  # characters
_NUMBERS = {int, float}
_WINDOW = 8 << 20  # bytes that are read again at most for a zoomed view
TAIL = 1 << 16  # bytes at a file's end that hold the newest rows
RECENT = 40  # training rows for trends and speeds


@dataclass(frozen=True)
class RunEvent:
    """One line of events.jsonl; `facts` are all its fields but name and times."""

    name: str
    time: float | None
    monotonic: float | None
    facts: Mapping[str, Any]

    def text(self, between: str = "  ") -> str:
        """Its fields besides the name, in a line; long ones are left to the report."""
        shown = [(name, value) for name, value in self.facts.items() if name not in _LONG]
        return between.join(_fact(name, value) for name, value in shown if value not in ("", None))


def _fact(name: str, value: Any) -> str:
    if name in ("reason", "text") and isinstance(value, str):
        return value
    if name == "bytes" and (size := number(value)) is not None:
        return byte_text(size)
    if isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if len(text) > _LONGEST_FACT:
        text = f"{text[:_LONGEST_FACT]} …"
    return f"{name.replace('_', ' ')} {text}"


class _Place(NamedTuple):
    """A range of metrics.jsonl: its lowest and highest step, and its byte range."""

    low: int
    high: int
    start: int
    end: int


@dataclass
class Newest:
    """The newest rows of training and of evaluations."""

    training: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))
    evaluations: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))

    def take(self, rows: Sequence[Row]) -> None:
        """Add rows; a step that comes again discards all from there on."""
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
        self._places: list[_Place] = []

    def _begin_again(self) -> None:
        """Forget both files after one was replaced, since their numbers are stored together."""
        self.curves.clear()
        self.broken.clear()
        self._in_order.clear()
        self._places.clear()
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
        """Read new rows, up to about `LIMIT` bytes of each file."""
        for follower in self.followers:
            for batch in follower.batches():
                for rows in _rising(batch):
                    _add_rows(rows, self.curves, self.capacity)
                    self._note_broken(rows)
                    self._in_order.take(rows[-RECENT:])
                    if follower is self.followers[0]:
                        self._remember(rows, follower.batch_start, follower.offset)
        if not self._is_behind:
            self._tails = []
            return
        if not self._tails:
            self._ahead.clear()
            paths = (follower.path for follower in self.followers)
            self._tails = [Follower(path, self._ahead.clear, TAIL) for path in paths]
        for tail in self._tails:
            self._ahead.take(list(filter(_has_step, tail.rows())))

    def _remember(self, rows: Sequence[Row], start: int, end: int) -> None:
        """Remember the byte range of these rows; neighbours are joined up to a chunk's size."""
        place = _Place(rows[0]["step"], rows[-1]["step"], start, end)
        last = self._places[-1] if self._places else None
        if last and place.end - last.start <= CHUNK and last.start <= start:
            low, high = min(last.low, place.low), max(last.high, place.high)
            self._places[-1] = _Place(low, high, last.start, place.end)
        else:
            self._places.append(place)

    def window(self, first: float, last: float) -> dict[str, Curve]:
        """The curves of training between two steps, read again at full detail.

        Empty where these steps span more bytes than are read at once.
        """
        places = [place for place in self._places if place.low <= last and place.high >= first]
        if sum(place.end - place.start for place in places) > _WINDOW:
            return {}
        found: dict[str, Curve] = {}
        for start, end in dict.fromkeys((place.start, place.end) for place in places):
            for batch in self.followers[0].again(start, end):
                rows = [row for row in batch if _has_step(row) and first <= row["step"] <= last]
                for part in _rising(rows):
                    _add_rows(part, found, self.capacity)
        return found

    def _note_broken(self, rows: Sequence[Row]) -> None:
        names = ("loss", "grad_norm")
        if not _all_finite([row[name] for row in rows for name in names if name in row]):
            broken = (row for row in rows if any(is_broken(row.get(name)) for name in names))
            self.broken.extend(row["step"] for row in broken)

    def typical(self, name: str, rows: int = 20) -> float | None:
        """Median of a metric over the newest training rows, which one slow step does not change."""
        found = [number(row.get(name)) for row in list(self.newest.training)[-rows:]]
        known = [value for value in found if value is not None]
        return median(known) if known else None


def _add_rows(rows: Sequence[Row], curves: dict[str, Curve], capacity: int) -> None:
    """Add rows with rising steps; consecutive ones with the same names as one table."""
    for names, group in groupby(rows, key=tuple):
        table = dict(zip(names, zip(*(row.values() for row in group), strict=True), strict=True))
        is_training = "loss" in table
        for name, values in table.items():
            if name not in _NO_METRICS and (is_training or name != "epoch"):
                _add_column(name, table["step"], values, curves, capacity)


def _add_column(
    name: str,
    steps: Sequence[int],
    values: Sequence[Any],
    curves: dict[str, Curve],
    capacity: int,
) -> None:
    if not _all_finite(values):
        pairs = [
            (step, value)
            for step, given in zip(steps, values, strict=True)
            if (value := number(given)) is not None
        ]
        steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    if name not in curves:
        if not values or len(curves) >= _MOST_METRICS:
            return
        curves[name] = Curve(capacity)
    curves[name].extend(steps, values)


def _has_step(row: Row) -> bool:
    """Whether a row has a step; written as 3.0 it is 3 from here on."""
    step = row.get("step")
    if type(step) is not int:
        step = whole(step)
        row["step"] = step
    return step is not None and 0 <= step < 1 << 62


def _rising(batch: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows with a step, split at restarts, where a step is not above the one before."""
    part: list[Row] = []
    for row in filter(_has_step, batch):
        if part and row["step"] <= part[-1]["step"]:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _all_finite(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers; checked in C."""
    try:
        return set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values))
    except OverflowError:
        return False


@dataclass
class Events:
    """events.jsonl: the newest events, and the state of the run by all of them.

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
        """Read new events, up to about `LIMIT` bytes."""
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
                self.counts.pop(Event.RESTARTED, None)  # events of an earlier launch
        elif event.name == Event.TRAINING:
            self.training = event.facts
        elif event.name == Event.EVALUATED:
            self.evaluated[str(event.facts.get("when"))] = event.facts

    def last(self, name: str) -> RunEvent | None:
        return next((event for event in reversed(self.newest) if event.name == name), None)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in the run's folder; `size` in bytes if it is whole."""

    step: int
    name: str
    size: int | None


def checkpoints(run: Run) -> Iterator[SavedCheckpoint]:
    """The existing checkpoints by step; whole ones have a seal."""
    found = []
    for path in run.checkpoints.glob(f"{PREFIX}*"):
        step = path.name.removeprefix(PREFIX)
        if step.isdecimal():
            files = read_object(path / SEAL).get("files")
            sizes = files.values() if isinstance(files, dict) else ()
            known = [whole(size.get("size")) or 0 for size in sizes if isinstance(size, dict)]
            found.append(SavedCheckpoint(int(step), path.name, sum(known) if known else None))
    yield from sorted(found, key=lambda checkpoint: checkpoint.step)
