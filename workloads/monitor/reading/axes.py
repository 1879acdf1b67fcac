"""Positions of points on a plot, for any renderer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workloads.monitor.numbers import ticks

XY = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """Ranges of a plot; on a log scale `low` and `high` are above 0."""

    left: float
    right: float
    low: float
    high: float
    log: bool = False

    def share(self, point: XY) -> XY:
        """Position of a point, right and down, 0 to 1 inside of the plot.

        Values without a logarithm are at the bottom.
        """
        low, value, high = self.low, point[1], self.high
        if self.log:
            low, value, high = math.log10(low), math.log10(max(value, low)), math.log10(high)
        return (point[0] - self.left) / (self.right - self.left), (high - value) / (high - low)

    def at(self, point: XY, width: int, height: int) -> tuple[int, int]:
        """A point's place on a grid of so many columns and rows, counted from the top left."""
        across, down = self.share(point)
        return round(across * (width - 1)), round(down * (height - 1))

    def value_ticks(self, most: int) -> list[float]:
        """Round values to write beside the plot."""
        if not self.log:
            return ticks(self.low, self.high, most)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / max(1, most)))
        factors = (1, 2, 5) if (last - first) * 3 <= most else (1,)
        found = [
            factor * 10.0**power for power in range(first, last + 1, every) for factor in factors
        ]
        inside = [value for value in found if self.low <= value <= self.high]
        return inside if len(inside) > 1 else ticks(self.low, self.high, most)


def axes_of(points: Sequence[XY], log: bool = False) -> Axes:
    """The span of points; on a log scale of those above 0, if there are any."""
    positive = [point for point in points if point[1] > 0] if log else []
    log = bool(positive)
    points = positive or points
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-12):
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return Axes(left, right if right > left else left + 1, low, high, log)
