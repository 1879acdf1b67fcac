"""Columns of text that keep to a width: names shorten before numbers are cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

_GAP = 2
_LEGIBLE = 5  # a shorter name is useless and is left out


@dataclass(frozen=True)
class Cell:
    """`least`: a name, which may be shortened to so many columns, and to 0: left out.

    sentence: shortened at its end, a name in its middle.
    """

    text: str
    style: str = ""
    right: bool = False
    least: int | None = None
    sentence: bool = False

    def fitted(self, room: int) -> str:
        """Its text in so many columns."""
        if self.sentence and cell_len(self.text) > room > 0:
            return set_cell_size(self.text, room - 1) + "…"
        return shortened(self.text, room)


def table(rows: Sequence[Sequence[Cell]], width: int) -> Text:
    """Rows of cells in columns two spaces apart, cut at the width."""
    sizes = column_sizes(rows, width)
    found = Text(no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        line = Text()
        for size, cell in zip(sizes, row, strict=False):
            if not size:
                continue
            text = cell.fitted(size)
            blanks = " " * (size - cell_len(text))
            body = blanks + text if cell.right else text + blanks
            line.append(" " * _GAP if line else "").append(body, cell.style)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        found.append("\n" if number else "").append_text(line)
    return found


def column_sizes(rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
    """Columns that each column of cells takes; those of names are narrowed first."""
    count = max(map(len, rows), default=0)
    columns = [[row[at] for row in rows if at < len(row)] for at in range(count)]
    sizes = [max(cell_len(cell.text) for cell in column) for column in columns]
    bounds = [[cell.least for cell in column if cell.least is not None] for column in columns]
    least = [
        min(size, max(bound)) if bound else size for size, bound in zip(sizes, bounds, strict=True)
    ]
    over = sum(sizes) + _GAP * (len(sizes) - 1) - width
    while over > 0 and sizes != least:
        widest = max(range(count), key=lambda at: (sizes[at] > least[at], sizes[at]))
        sizes[widest] -= 1
        over -= 1
        if sizes[widest] < _LEGIBLE and not least[widest]:
            over -= sizes[widest] + _GAP
            sizes[widest] = 0
    return sizes


def least_width(rows: Sequence[Sequence[Cell]]) -> int:
    """Columns that rows take when all their names are shortened as far as they may be."""
    sizes = [size for size in column_sizes(rows, 0) if size]
    return sum(sizes) + _GAP * (len(sizes) - 1)


def shortened(text: str, room: int) -> str:
    """A name shortened in its middle: both of its ends distinguish it."""
    if cell_len(text) <= room:
        return text
    if room < _LEGIBLE:
        return set_cell_size(text, max(0, room - 1)) + "…" if room > 0 else ""
    head = (room - 1) * 3 // 5
    tail = room - 1 - head
    ends = set_cell_size(text, head), set_cell_size(text[::-1], tail)[::-1]
    return "…".join(ends)
