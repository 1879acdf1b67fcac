"""A view of a curve: metric, steps, scale and selected point."""

import math
from dataclasses import dataclass, replace

from workloads.monitor.numbers import number_text
from workloads.monitor.reading.curve import Point
from workloads.monitor.reading.metric_names import metric_points
from workloads.monitor.reading.snapshot import Snapshot

_LEAST_SHOWN = 8  # points that zooming in leaves


@dataclass(frozen=True)
class CurveView:
    """`steps`: the shown range, None for all; `cursor`: the step of the selected point."""

    metric: str = "loss"
    log: bool = False
    steps: tuple[int, float] | None = None
    cursor: int | None = None

    def points(self, snapshot: Snapshot) -> list[Point]:
        return self._inside(metric_points(snapshot.curves, self.metric))

    def marks(self, snapshot: Snapshot) -> list[Point]:
        """The held-out losses beside the loss."""
        return self._inside(
            metric_points(snapshot.curves, "eval_loss") if self.metric == "loss" else []
        )

    def _inside(self, points: list[Point]) -> list[Point]:
        if self.steps is None:
            return points
        return [point for point in points if self.steps[0] <= point.step <= self.steps[1]]

    def selected(self, snapshot: Snapshot) -> Point | None:
        """The point under the cursor, None without a cursor."""
        if (step := self.cursor) is None:
            return None
        return min(self.points(snapshot), key=lambda point: abs(point.step - step), default=None)

    def moved(self, snapshot: Snapshot, by: int) -> "CurveView":
        """Move the cursor by so many points; the first move puts it on the newest point."""
        points = self.points(snapshot)
        selected = self.selected(snapshot)
        if not points:
            return self
        if selected is None:
            return replace(self, cursor=points[-1].step)
        at = min(max(points.index(selected) + by, 0), len(points) - 1)
        return replace(self, cursor=points[at].step)

    def zoomed(self, snapshot: Snapshot, factor: float) -> "CurveView":
        """Zoom around the cursor, or the end; beyond the whole range means all."""
        points = list(snapshot.curves.get(self.metric, ()))
        shown = self.points(snapshot)
        selected = self.selected(snapshot)
        if not shown or (factor < 1 and len(shown) <= _LEAST_SHOWN):
            return self
        span = (shown[-1].step - shown[0].step) * factor
        middle = selected.step if selected else shown[-1].step
        right = min(points[-1].step, middle + span / 2)
        left = right - span
        if left <= points[0].step:
            left, right = points[0].step, points[0].step + span
        if right >= points[-1].step:
            right = math.inf  # it goes on with the run
        whole = left <= points[0].step and right == math.inf
        return replace(self, steps=None if whole else (int(left), right))


LOSS = CurveView()


def point_text(point: Point) -> str:
    """`step 1,024: 2.31`, or of several rows `steps 1,001-1,024: 2.31 (2.1 to 2.6)`."""
    if point.count == 1:
        return f"step {point.step:,}: {number_text(point.mean)}"
    span = f"{number_text(point.low)} to {number_text(point.high)}"
    return f"steps {point.first:,}-{point.step:,}: {number_text(point.mean)} ({span})"
