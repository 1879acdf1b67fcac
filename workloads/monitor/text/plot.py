"""Curves in characters: dots of braille, four high and two wide in each cell."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workloads.monitor.numbers import count_text, ticks
from workloads.monitor.reading.axes import XY, Axes, axes_of

# Bits of a braille cell by row and column.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Canvas:
    """Cells that lines are drawn on; in ASCII a cell is `.`, `:` or `'` by where its dots are."""

    width: int
    height: int
    ascii: bool = False
    _cells: dict[tuple[int, int], int] = field(default_factory=dict)

    def dot(self, x: int, y: int) -> None:
        """Set a dot; x from the left in half cells, y from the top in quarter cells."""
        if 0 <= x < 2 * self.width and 0 <= y < 4 * self.height:
            key = (y // 4, x // 2)
            self._cells[key] = self._cells.get(key, 0) | _BITS[y % 4][x % 2]

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Draw a straight line of dots between two points."""
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for at in range(length + 1):
            share = at / length
            self.dot(round(x0 + (x1 - x0) * share), round(y0 + (y1 - y0) * share))

    def rows(self) -> list[str]:
        return [
            "".join(self._glyph(self._cells.get((y, x), 0)) for x in range(self.width))
            for y in range(self.height)
        ]

    def _glyph(self, bits: int) -> str:
        if not bits or not self.ascii:
            return chr(_BRAILLE + bits) if bits else " "
        upper, lower = bool(bits & 0x1B), bool(bits & 0xE4)
        return ":" if upper and lower else "'" if upper else "."


@dataclass(frozen=True)
class Plot:
    """Lines of text; `marks` are the cells (row, column) of the second series' points."""

    lines: list[str]
    marks: list[tuple[int, int]]
    gutter: int  # columns of the axis at the left
    axes: Axes | None = None
    width: int = 0

    def column(self, step: float) -> int | None:
        """The column that a step lies in."""
        if self.axes is None:
            return None
        inner = self.width - self.gutter
        return self.gutter + self.axes.at((step, self.axes.high), 2 * inner, 2)[0] // 2


def plot(
    curve: Sequence[XY],
    others: Sequence[XY],
    width: int,
    height: int,
    ascii: bool = False,
    log: bool = False,
) -> Plot:
    """A curve of (step, value) with axes, and single points of another one, in a box of cells.

    At least 20 x 4 cells are needed; smaller boxes give an empty plot.
    """
    if not curve or width < 20 or height < 4:
        return Plot([], [], 0)
    axes = axes_of([*curve, *others], log)
    rows = height - 1
    labels = {
        axes.at((axes.left, value), 2, rows)[1]: count_text(value)
        for value in axes.value_ticks(max(2, rows * 3 // 5))
    }
    gutter = max(len(text) for text in labels.values()) + 2
    inner = width - gutter
    canvas = Canvas(inner, rows, ascii)
    places = [axes.at(point, 2 * inner, 4 * rows) for point in curve]
    for start, end in zip(places, places[1:] or places, strict=False):
        canvas.line(*start, *end)
    bar = "|" if ascii else "│"
    lines = [
        f"{labels.get(at, ''):>{gutter - 2}} {bar}{row}" for at, row in enumerate(canvas.rows())
    ]
    dots = [axes.at(point, 2 * inner, 4 * rows) for point in others]
    marks = [(y // 4, x // 2 + gutter) for x, y in dots]
    return Plot([*lines, _steps(axes, gutter, inner)], marks, gutter, axes, width)


def _steps(axes: Axes, gutter: int, inner: int) -> str:
    """The horizontal axis: round steps under their columns, as many as fit."""
    line = [" "] * (gutter + inner)
    free = 0
    for value in ticks(axes.left, axes.right, max(1, inner // 12)):
        text = count_text(value)
        column = gutter + axes.at((value, axes.high), inner, 2)[0]
        start = min(max(column - len(text) // 2, 0), len(line) - len(text))
        if start >= free:
            line[start : start + len(text)] = text
            free = start + len(text) + 1
    return "".join(line).rstrip()


def spark(values: Sequence[float], width: int, scale: tuple[float, float] | None = None) -> str:
    """A curve in one line of bars; empty for fewer than two values.

    scale: values of the lowest and the highest bar; None for those of the curve.
    """
    if len(values) < 2 or width < 2:
        return ""
    width = min(width, len(values))
    cuts = [at * len(values) // width for at in range(width + 1)]
    parts = (values[start:end] for start, end in zip(cuts, cuts[1:], strict=False))
    means = [sum(part) / len(part) for part in parts]
    low, high = scale or (min(means), max(means))
    span = high - low or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in means)
