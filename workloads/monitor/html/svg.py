"""Curves as inline SVG, without scripts, coloured by the page's style."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from workloads.monitor.numbers import clean, count_text, number_text, ticks
from workloads.monitor.reading.axes import Axes, axes_of
from workloads.monitor.reading.curve import Point, course
from workloads.monitor.reading.curve_view import point_text

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24
_HITS = 240  # points of a chart with a tooltip
_SMOOTHED = 20  # points of a curve from which on it is smoothed, as in charts.js
COLOURS = 8  # colours of the style for several runs


@dataclass(frozen=True)
class Size:
    """The size of a drawing in its own units."""

    width: int = 1130
    height: int = 300

    def place(self, axes: Axes, step: float, value: float) -> tuple[float, float]:
        """A point's coordinates."""
        across, down = axes.share((step, value))
        x = _LEFT + across * (self.width - _LEFT - _RIGHT)
        y = _TOP + down * (self.height - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)


@dataclass(frozen=True)
class Line:
    """One run's curve; `name` where there are several."""

    points: Sequence[Point]
    name: str = ""


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Point] = (),
    size: Size | None = None,
    smoothed: bool = True,
    values: bool = False,
) -> str:
    """One metric of one or more runs: rows, smoothed course, and marks.

    A single run has a band of its rows. Empty where no line has two points. `title` is for screen
    readers; `values` adds tooltips.
    """
    drawn = [(at, line) for at, line in enumerate(lines) if len(line.points) > 1]
    if not drawn:
        return ""
    size = size or Size()
    shown = [point for _, line in drawn for point in (*line.points, *marks)]
    # The band is cut to the means, so that one spike does not flatten the rest.
    axes = axes_of([(float(point.step), point.mean) for point in shown])
    parts = [*_grid(axes, size)]
    for at, line in drawn:
        body = "".join(_line_parts(line, axes, size, smoothed, band=len(lines) == 1))
        parts.append(f'<g class="c{at % COLOURS}">{body}</g>' if len(lines) > 1 else body)
    parts += _marks(marks, axes, size)
    if values:
        parts += _hits([line for _, line in drawn], axes, size)
    several = " several" if len(lines) > 1 else ""
    return (
        f'<svg class="chart{several}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(clean(title), quote=True)}">{"".join(parts)}</svg>'
    )


def _grid(axes: Axes, size: Size) -> Iterable[str]:
    bottom, right = size.height - _BOTTOM, size.width - _RIGHT
    for value in axes.value_ticks(size.height // 38):
        _, y = size.place(axes, axes.left, value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
        yield f'<text class="axis" x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">'
        yield f"{escape(count_text(value))}</text>"
    for value in ticks(axes.left, axes.right, max(3, size.width // 110)):
        x, _ = size.place(axes, value, axes.low)
        yield f'<text class="axis" x="{x}" y="{bottom + 16}" text-anchor="middle">'
        yield f"{escape(count_text(value))}</text>"
    yield f'<line class="base" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'


def _line_parts(line: Line, axes: Axes, size: Size, smoothed: bool, band: bool) -> Iterable[str]:
    smoothed = smoothed and len(line.points) >= _SMOOTHED
    means = [(float(point.step), point.mean) for point in line.points]
    if band and any(point.high > point.low for point in line.points):
        yield _band(line.points, axes, size)
    yield _polyline(means, axes, size, "raw" if smoothed else "main")
    if smoothed:
        smooth = course([value for _, value in means])
        steps = [step for step, _ in means]
        yield _polyline(list(zip(steps, smooth, strict=True)), axes, size, "main")


def _polyline(points: Sequence[tuple[float, float]], axes: Axes, size: Size, kind: str) -> str:
    places = (size.place(axes, *point) for point in points)
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'


def _band(points: Sequence[Point], axes: Axes, size: Size) -> str:
    def within(value: float) -> float:
        return min(max(value, axes.low), axes.high)

    upper = [size.place(axes, point.step, within(point.high)) for point in points]
    lower = [size.place(axes, point.step, within(point.low)) for point in reversed(points)]
    return f'<polygon class="band" points="{" ".join(f"{x},{y}" for x, y in [*upper, *lower])}"/>'


def _marks(marks: Sequence[Point], axes: Axes, size: Size) -> Iterable[str]:
    if len(marks) > 1:
        yield _polyline([(float(point.step), point.mean) for point in marks], axes, size, "held")
    for point in marks:
        x, y = size.place(axes, point.step, point.mean)
        text = escape(f"step {point.step:,}: {number_text(point.mean)}")
        yield f'<circle class="mark" cx="{x}" cy="{y}" r="4"><title>{text}</title></circle>'


def _hits(lines: Sequence[Line], axes: Axes, size: Size) -> Iterable[str]:
    """Invisible vertical strips, whose titles browsers show as tooltips."""
    longest = max((line.points for line in lines), key=len)
    every = -(-len(longest) // _HITS)
    steps = [point.step for point in longest[::every]]
    edges = [size.place(axes, step, axes.low)[0] for step in steps]
    cuts = [
        edges[0],
        *((left + right) / 2 for left, right in zip(edges, edges[1:], strict=False)),
        edges[-1],
    ]
    height = size.height - _TOP - _BOTTOM
    for at, step in enumerate(steps):
        texts = [_value_at(line, step) for line in lines]
        width = max(0.5, round(cuts[at + 1] - cuts[at], 1))
        yield f'<rect class="hit" x="{round(cuts[at], 1)}" y="{_TOP}" width="{width}" '
        yield f'height="{height}"><title>{escape(chr(10).join(texts))}</title></rect>'


def _value_at(line: Line, step: int) -> str:
    nearest = min(line.points, key=lambda point: abs(point.step - step))
    text = point_text(nearest)
    return f"{clean(line.name)} {text}" if line.name else text
