"""All runs as a table, one line each."""

from collections.abc import Sequence

from rich.text import Text

from workloads.monitor.numbers import clean
from workloads.monitor.reading.run_table import COLUMNS, first_alert
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text.frame import PHASES
from workloads.monitor.text.table import Cell, table

_ALERT = 32  # columns that an alert keeps beside whole names
_NAME = 22  # columns to which a run's name may be shortened
# Left out on narrow terminals, so that alerts are visible.
_WIDE = (("step", 60), ("loss", 60), ("held-out", 80), ("duration", 110), ("started", 110))


def listing(runs: Sequence[Snapshot], width: int) -> Text:
    """The runs in their order, with the first alert of active ones."""
    return table(rows_of(runs, width), width)


def rows_of(runs: Sequence[Snapshot], width: int) -> list[list[Cell]]:
    """Titles, and one row a run; columns without room are left out of all."""
    left_out = {title for title, room in _WIDE if width <= room}
    shown = [at for at, column in enumerate(COLUMNS) if column.title not in left_out]
    rows = [head(), *(row(run) for run in runs)]
    return [[cells[at] for at in (*shown, len(COLUMNS))] for cells in rows]


def head() -> list[Cell]:
    return [*(Cell(column.title, "dim", column.is_number) for column in COLUMNS), Cell("")]


def row(snapshot: Snapshot) -> list[Cell]:
    """A run's cells: one a column, and its first alert."""
    styles = {
        "run": "bold" if snapshot.active else "",
        "phase": PHASES.get(snapshot.phase, "cyan"),
        "started": "dim",
        "duration": "dim",
    }
    cells = [
        Cell(
            clean(column.text(snapshot)),
            styles.get(column.title, ""),
            column.is_number,
            least=_NAME if column.title == "run" else None,
        )
        for column in COLUMNS
    ]
    alert = first_alert(snapshot)
    text = clean(alert.text) if alert else ""
    style = "red" if alert and alert.bad else "yellow"
    return [*cells, Cell(text, style, least=_ALERT, sentence=True)]
