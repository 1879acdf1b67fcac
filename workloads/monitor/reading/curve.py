"""A metric over the steps, in bounded memory however long the run is."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CAPACITY = 512


@dataclass(frozen=True)
class Point:
    """Consecutive rows: the last one's step, their mean, lowest and highest value."""

    step: int
    mean: float
    low: float
    high: float
    first: int  # the first one's step
    count: int  # of rows


class Curve:
    """At most `capacity` points; when they are full, two neighbours become one.

    A step that comes again, after a restart, discards all from there on. Where several
    rows share a point this is exact to that point's width.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity // 2 * 2  # points are merged in pairs
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
            first, count = self._first[at], self._count[at]
            yield Point(step, mean, self._low[at], self._high[at], first, count)

    @property
    def newest_step(self) -> int:
        return self._step[-1] if self._step else 0

    def add(self, step: int, value: float) -> None:
        """Take one row's finite value."""
        self.extend((step,), (value,))

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Take many rows' finite values at once; their steps only rise."""
        if not steps:
            return
        if self._step and steps[0] <= self._step[-1]:
            self._take_back(steps[0])
        self.rows += len(steps)
        self.last = float(values[-1])
        start = 0
        while start < len(steps):
            count = self._count[-1] if self._count else self.width
            if count >= self.width:
                self._open_point(steps[start])
                count = 0
            end = min(len(steps), start + self.width - count)
            part = values[start:end]
            self._step[-1] = steps[end - 1]
            self._count[-1] += len(part)
            self._sum[-1] += sum(part)
            self._low[-1] = min(self._low[-1], min(part))
            self._high[-1] = max(self._high[-1], max(part))
            start = end

    def copy(self) -> "Curve":
        """A copy that does not change while this curve grows."""
        found = Curve(self.capacity)
        found.rows, found.width, found.last = self.rows, self.width, self.last
        for column, own in zip(found._columns(), self._columns(), strict=True):
            column.extend(own)
        return found

    def _open_point(self, step: int) -> None:
        if len(self) >= self.capacity:
            self._halve()
        entries = (step, step, 0, 0.0, math.inf, -math.inf)
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
    """Exponential mean with bias correction, as of Adam's moments; it lags by its span."""
    mean, found = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        found.append(mean / (1 - weight**count))
    return found


def course(values: Sequence[float]) -> list[float]:
    """The same from both sides, without lag; its span is a share of the whole."""
    span = max(3.0, len(values) / 50)
    weight = 1 - 2 / (span + 1)
    return smooth(smooth(values, weight)[::-1], weight)[::-1]
