"""A metric over the steps, in bounded memory however long the run is."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CAPACITY = 512


@dataclass(frozen=True)
class Point:
    """Some neighbouring rows: the last one's step, their mean, lowest and highest value."""

    step: int
    mean: float
    low: float
    high: float


class Curve:
    """At most `capacity` points; when they are full, two neighbours become one.

    A step that comes again, after a restart, takes back what was known from there on. Where several
    rows share a point this is exact to that point's width.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity // 2 * 2  # two become one, with none left over
        self.rows = 0
        self.width = 1  # rows of one whole point
        self.last: float | None = None
        self._first, self._step, self._count = array("q"), array("q"), array("q")
        self._sum, self._low, self._high = array("d"), array("d"), array("d")

    def __len__(self) -> int:
        return len(self._step)

    def __iter__(self) -> Iterator[Point]:
        for at, step in enumerate(self._step):
            mean = self._sum[at] / self._count[at]
            yield Point(step, mean, self._low[at], self._high[at])

    def add(self, step: int, value: float) -> None:
        """Take one row's finite value."""
        if self._step and step <= self._step[-1]:
            self._take_back(step)
        self.rows += 1
        self.last = value
        if self._count and self._count[-1] < self.width:
            self._step[-1] = step
            self._count[-1] += 1
            self._sum[-1] += value
            self._low[-1] = min(self._low[-1], value)
            self._high[-1] = max(self._high[-1], value)
            return
        if len(self) >= self.capacity:
            self._halve()
        entries = (step, step, 1, value, value, value)
        for column, entry in zip(self._columns(), entries, strict=True):
            column.append(entry)

    def _columns(self) -> tuple[array, ...]:
        return self._first, self._step, self._count, self._sum, self._low, self._high

    def _take_back(self, step: int) -> None:
        while self._first and self._first[-1] >= step:
            self.rows -= self._count[-1]
            for column in self._columns():
                column.pop()
        if self._step:
            self._step[-1] = min(self._step[-1], step - 1)

    def _halve(self) -> None:
        count = len(self) // 2
        for at in range(count):
            left, right = 2 * at, 2 * at + 1
            self._first[at] = self._first[left]
            self._step[at] = self._step[right]
            self._count[at] = self._count[left] + self._count[right]
            self._sum[at] = self._sum[left] + self._sum[right]
            self._low[at] = min(self._low[left], self._low[right])
            self._high[at] = max(self._high[left], self._high[right])
        for column in self._columns():
            del column[count:]
        self.width *= 2


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, corrected at the start as Adam's moments are; it comes late by its span."""
    mean, found = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        found.append(mean / (1 - weight**count))
    return found


def course(values: Sequence[float]) -> list[float]:
    """The same from both sides, so that it is not late; its span is a share of the whole."""
    span = max(3.0, len(values) / 50)
    weight = 1 - 2 / (span + 1)
    return smooth(smooth(values, weight)[::-1], weight)[::-1]
