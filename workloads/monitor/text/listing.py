"""All runs in a table, a line each."""

from collections.abc import Sequence

from rich.text import Text

from workloads.monitor.numbers import clean, clock_text, number_text
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.reading.trouble import troubles
from workloads.monitor.text.frame import PHASES, Cell, table

# Left out where there is little room, so that the warnings are seen.
_STARTED, _ROOM = 5, 100
HEAD = ("run", "phase", "step", "loss", "held-out", "started", "")


def listing(runs: Sequence[Snapshot], width: int) -> Text:
    """The runs as they come, with the first warning of those that go on."""
    rows = [[Cell(text, "dim", at in (2, 3, 4)) for at, text in enumerate(HEAD)]]
    rows += [row(one) for one in runs]
    if width < _ROOM:
        rows = [[cell for at, cell in enumerate(cells) if at != _STARTED] for cells in rows]
    return table(rows, width)


def row(now: Snapshot) -> list[Cell]:
    steps = f"{now.step:,}" + (f"/{now.steps:,}" if now.steps else "")
    started = next((one.time for one in now.events if one.name == "started"), None)
    found = troubles(now) if now.active or now.phase in ("failed", "lost") else []
    return [
        Cell(clean(now.name), "bold" if now.active else ""),
        Cell(clean(now.phase), PHASES.get(now.phase, "cyan")),
        Cell(steps, "", True),
        Cell("" if now.loss is None else number_text(now.loss), "", True),
        Cell("" if now.held_out is None else number_text(now.held_out), "", True),
        Cell("" if started is None else clock_text(started), "dim"),
        Cell(clean(found[0].text) if found else "", "red" if found and found[0].bad else "yellow"),
    ]
