"""All runs in the terminal: sorted, searched, opened."""

from pathlib import Path
from typing import ClassVar

from rich.console import JustifyMethod
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input

from workloads.monitor.numbers import counted
from workloads.monitor.reading import find
from workloads.monitor.reading.run_table import COLUMNS, search, sort
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text.listing import rows_of
from workloads.monitor.text.panel import Panel
from workloads.monitor.text.table import Cell, column_sizes
from workloads.run import Run

_EVERY = 3.0
_LEAST_ALERT = 12  # columns; with fewer, the table can be scrolled


class OpenRun(Message):
    """Message: a run was chosen."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


class ListScreen(Screen[None]):
    """All runs; enter opens one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open", show=True),
        Binding("s", "sort", "sort by"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "search", "search", key_display="/"),
        Binding("escape", "all", "all", show=False),
    ]

    def __init__(self, root: Path, before: Run | None = None) -> None:
        super().__init__()
        self._root, self._before = root, before
        self._list = find.RunList()
        self._known: list[Snapshot] = []
        self._all = 0  # runs, with those that are too old for the list
        self._runs: dict[str, Run] = {}
        self._sorted_by: str | None = None  # None: the newest first
        self._descending = False

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        yield Input(placeholder="words of a run's name, phase, model, reason …", id="search")
        yield DataTable(cursor_type="row", zebra_stripes=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Input).display = False
        self._table.focus()
        self.read()
        self.set_interval(_EVERY, self.read)

    @property
    def _table(self) -> "DataTable[Text]":
        return self.query_one(DataTable)

    def read(self) -> None:
        """Read the list again; the cursor stays on its run."""
        runs = find.runs(self._root)
        self._all = len(runs)
        self._known = self._list.read(runs[: find.MOST])
        self.draw()

    def draw(self) -> None:
        """Show the list in the chosen order, filtered by the search."""
        shown = search(self._known, self.query_one(Input).value)
        if self._sorted_by is not None:
            shown = sort(shown, self._sorted_by, self._descending)
        elif self._descending:
            shown = shown[::-1]
        self._draw_top(len(shown))
        table = self._table
        chosen = self._chosen() or self._before
        heads, *rows = rows_of(shown, self.size.width)
        sizes = column_sizes([heads, *rows], self.size.width - 2)
        sizes[-1] = max(_LEAST_ALERT, self.size.width - 2 - sum(sizes[:-1]) - 2 * len(sizes[:-1]))
        table.clear(columns=True)
        for cell, size in zip(heads, sizes, strict=True):
            table.add_column(self._marked(cell.text), width=size)
        self._runs = {str(snapshot.run.path): snapshot.run for snapshot in shown}
        for path, cells in zip(self._runs, rows, strict=True):
            texts = (_text(cell, size) for cell, size in zip(cells, sizes, strict=True))
            table.add_row(*texts, key=path)
        if chosen and str(chosen.path) in self._runs:
            table.move_cursor(row=table.get_row_index(str(chosen.path)))

    def _draw_top(self, shown: int) -> None:
        going = sum(snapshot.active for snapshot in self._known)
        count = counted(len(self._known), "run")
        if self._all > len(self._known):
            count = f"the newest {count} of {self._all:,}"
        if shown < len(self._known):
            count = f"{shown} of {count}"
        self.query_one(Panel).show(Text(f"{count} in {self._root}, {going} going on", "bold"))

    def _marked(self, title: str) -> str:
        """A column's title, with its sort direction."""
        arrow = "↓" if self._descending else "↑"
        return f"{title}{arrow}" if title and title == self._sorted_by else title

    def _chosen(self) -> Run | None:
        names = list(self._runs)
        at = self._table.cursor_row
        return self._runs[names[at]] if 0 <= at < len(names) else None

    def action_sort(self) -> None:
        """Sort by the next column; after the last one, by age again."""
        titles = [None, *(column.title for column in COLUMNS)]
        self._sorted_by = titles[(titles.index(self._sorted_by) + 1) % len(titles)]
        self._descending = False
        self.draw()

    def action_reverse(self) -> None:
        self._descending = not self._descending
        self.draw()

    def action_search(self) -> None:
        """Show the search field."""
        field = self.query_one(Input)
        field.display = True
        field.focus()

    def action_all(self) -> None:
        """Clear the search."""
        field = self.query_one(Input)
        field.value = ""
        field.display = False
        self._table.focus()

    def on_input_changed(self) -> None:
        self.draw()

    def on_input_submitted(self) -> None:
        self._table.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        run = self._runs.get(str(event.row_key.value))
        if run is not None:
            self.post_message(OpenRun(run))


def _text(cell: Cell, size: int) -> Text:
    text = cell.text if cell.least is None else cell.fitted(size)
    justify: JustifyMethod = "right" if cell.right else "left"
    return Text(text, cell.style, justify=justify, no_wrap=True, overflow="ellipsis")
