"""Curves as inline SVG: no script, nothing from elsewhere, coloured by the page's style."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from workloads.monitor.numbers import count_text, number_text, ticks
from workloads.monitor.reading.curve import Point, course
from workloads.monitor.text.plot import Frame, frame_of

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24


@dataclass(frozen=True)
class Box:
    """The size of a drawing in its own units."""

    width: int = 1130
    height: int = 300

    def place(self, frame: Frame, step: float, value: float) -> tuple[float, float]:
        """A point's coordinates."""
        across = (step - frame.left) / (frame.right - frame.left)
        down = (frame.high - value) / (frame.high - frame.low)
        x = _LEFT + across * (self.width - _LEFT - _RIGHT)
        y = _TOP + down * (self.height - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)


def chart(
    title: str,
    points: Sequence[Point],
    marks: Sequence[Point] = (),
    box: Box | None = None,
    smoothed: bool = True,
) -> str:
    """One metric: the band that its rows lie in, the rows, their smoothed course, and marks.

    Empty for fewer than two points. `title` is what a screen reader says.
    """
    if len(points) < 2:
        return ""
    box = box or Box()
    frame = _frame(points, marks)
    means = [(float(point.step), point.mean) for point in points]
    parts = [*_grid(frame, box)]
    if any(point.high > point.low for point in points):
        parts.append(_band(points, frame, box))
    parts.append(_line(means, frame, box, "raw" if smoothed else "main"))
    if smoothed:
        smooth = course([value for _, value in means])
        steps = [step for step, _ in means]
        parts.append(_line(list(zip(steps, smooth, strict=True)), frame, box, "main"))
    parts += _marks(marks, frame, box)
    name = escape(title, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {box.width} {box.height}" role="img" '
        f'aria-label="{name}">{"".join(parts)}</svg>'
    )


def _frame(points: Sequence[Point], marks: Sequence[Point]) -> Frame:
    """All means and marks; the band is cut to that, so that one spike does not flatten the rest."""
    return frame_of([(float(point.step), point.mean) for point in (*points, *marks)])


def _grid(frame: Frame, box: Box) -> Iterable[str]:
    bottom = box.height - _BOTTOM
    for value in ticks(frame.low, frame.high, box.height // 38):
        _, y = box.place(frame, frame.left, value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{box.width - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="axis" x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">'
        yield f"{escape(count_text(value))}</text>"
    for value in ticks(frame.left, frame.right, max(3, box.width // 110)):
        x, _ = box.place(frame, value, frame.low)
        yield f'<text class="axis" x="{x}" y="{bottom + 16}" text-anchor="middle">'
        yield f"{escape(count_text(value))}</text>"
    yield f'<line class="base" x1="{_LEFT}" x2="{box.width - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'


def _line(points: Sequence[tuple[float, float]], frame: Frame, box: Box, kind: str) -> str:
    places = (box.place(frame, *point) for point in points)
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'


def _band(points: Sequence[Point], frame: Frame, box: Box) -> str:
    def within(value: float) -> float:
        return min(max(value, frame.low), frame.high)

    upper = [box.place(frame, point.step, within(point.high)) for point in points]
    lower = [box.place(frame, point.step, within(point.low)) for point in reversed(points)]
    return f'<polygon class="band" points="{" ".join(f"{x},{y}" for x, y in [*upper, *lower])}"/>'


def _marks(marks: Sequence[Point], frame: Frame, box: Box) -> Iterable[str]:
    if len(marks) > 1:
        yield _line([(float(point.step), point.mean) for point in marks], frame, box, "held")
    for point in marks:
        x, y = box.place(frame, point.step, point.mean)
        told = escape(f"step {point.step:,}: {number_text(point.mean)}")
        yield f'<circle class="mark" cx="{x}" cy="{y}" r="4"><title>{told}</title></circle>'
