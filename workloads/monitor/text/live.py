"""The live view in a terminal: a run, and the list of all runs behind it."""

import os
import select
import sys
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from workloads.errors import EXIT_DONE
from workloads.monitor.reading import find
from workloads.monitor.reading.hardware import Hardware, Reading
from workloads.monitor.reading.snapshot import Snapshot, Watch
from workloads.monitor.text import frame
from workloads.monitor.text.listing import HEAD, row
from workloads.run import Run

EVERY = 2.0  # seconds between two looks; heartbeats come every second
_EVERY_LIST = 3.0
_EVENTS = 50


_STYLE = """
Screen { background: $background; }
#top { height: auto; padding: 0 1; margin-bottom: 1; }
.-low #top { margin-bottom: 0; }
#warnings { height: auto; max-height: 7; padding: 0 1; }

.titled { text-wrap: nowrap; text-overflow: ellipsis; }
.titled { border-top: solid $primary; border-title-color: $text; border-title-style: bold; }
#body, #main { height: 1fr; }
#curve { height: 1fr; min-height: 6; }
#side { height: auto; }
#ranks-scroll { height: auto; max-height: 8; scrollbar-size-vertical: 1; }
#ranks, #machine, #sparks { height: auto; }
#events { height: 5; }
#sparks { display: none; }
.-narrow.-low #ranks-scroll { max-height: 5; }
.-narrow.-low #events { height: 4; }

.-wide #body { layout: horizontal; }
.-wide #main { width: 1fr; height: 100%; }
.-wide #side { width: 62; height: 100%; margin-left: 2; }
.-wide #ranks-scroll { max-height: 60%; }
.-wide #sparks { display: block; }
.-wide.-high #events { height: 9; }

DataTable { height: 1fr; background: $background; }
"""


class Panel(Static):
    """A part of the view; drawn again only where it differs from what is there."""

    shown: Text | None = None

    def show(self, text: Text) -> None:
        before, self.shown = self.shown, text
        if before is None or before != text:
            # Arranging all parts anew costs more than all else; most looks change no heights.
            same_height = before is not None and before.plain.count("\n") == text.plain.count("\n")
            self.update(text, layout=not same_height)

    @property
    def room(self) -> int:
        """Columns that its text may take."""
        return self.content_size.width or self.container_size.width


class RunScreen(Screen[None]):
    """One run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,l", "all_runs", "all runs"),
        Binding("m", "metric(1)", "next curve"),
        Binding("M", "metric(-1)", "previous curve", show=False),
    ]

    def __init__(self, run: Run, root: Path) -> None:
        super().__init__()
        self._run, self._root = run, root
        self._watch = Watch(run)
        self._hardware = Hardware()
        self._metric = "loss"
        self._seen: tuple[Snapshot, Reading] | None = None

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        yield Panel(id="warnings")
        with Container(id="body"):
            with Container(id="main"):
                yield Panel(id="curve", classes="titled")
                yield Panel(id="events", classes="titled")
            with Container(id="side"):
                with VerticalScroll(id="ranks-scroll", classes="titled"):
                    yield Panel(id="ranks")
                yield Panel(id="machine", classes="titled")
                yield Panel(id="sparks", classes="titled")
        yield Footer()

    def on_mount(self) -> None:
        self.call_after_refresh(self.look)
        self.set_interval(EVERY, self.look)

    def on_unmount(self) -> None:
        self._hardware.close()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def look(self) -> None:
        """Read what is new and show it."""
        here = self._hardware.look()
        first = self._seen is None
        self._seen = self._watch.look(here.gpus), here
        self.draw()
        if first:
            self.call_after_refresh(self.draw)  # now the parts know their room

    def draw(self) -> None:
        """Show the last look again, in the room there is."""
        if self._seen is None:
            return
        now, here = self._seen
        width = self.size.width - 2
        top = frame.header(now, width).append("\n").append_text(frame.numbers(now, width))
        self._panel("top").show(top)
        self._draw_warnings(frame.warnings(now, width))
        self._draw_curve(now)
        self._draw_side(now, here)

    def _draw_warnings(self, text: Text) -> None:
        panel = self._panel("warnings")
        panel.show(text)
        if panel.display != bool(text):
            panel.display = bool(text)
            self.call_after_refresh(self.draw)  # the other parts have more room now, or less

    def _draw_curve(self, now: Snapshot) -> None:
        panel = self._panel("curve")
        panel.border_title = frame.curve_title(now, self._metric)
        size = panel.content_size
        panel.show(frame.curve(now, size.width, size.height, self._metric))

    def _draw_side(self, now: Snapshot, here: Reading) -> None:
        machine = self._panel("machine")
        machine.show(frame.hardware(now, here, machine.room))
        machine.border_title = f"this machine ({here.host})"
        ranks = self._panel("ranks")
        ranks.show(frame.ranks(now, ranks.room))
        self.query_one("#ranks-scroll").border_title = "ranks"
        sparks = self._panel("sparks")
        sparks.show(frame.sparks(now, sparks.room))
        sparks.border_title = "courses"
        events = self._panel("events")
        height = events.content_size.height
        events.show(frame.events(now, events.room, min(height, _EVENTS)))
        events.border_title = "last events"

    def _panel(self, name: str) -> Panel:
        return self.query_one(f"#{name}", Panel)

    @property
    def going_on(self) -> str | None:
        """The run's name while it is active."""
        now = self._seen[0] if self._seen else None
        return now.name if now and now.active else None

    def action_metric(self, by: int) -> None:
        """Draw the next metric of the run."""
        names = frame.metric_names(self._seen[0]) if self._seen else []
        if names:
            at = names.index(self._metric) if self._metric in names else -1
            self._metric = names[(at + by) % len(names)]
            self.draw()

    def action_all_runs(self) -> None:
        self.app.switch_screen(ListScreen(self._root, self._run))


class ListScreen(Screen[None]):
    """All runs; enter opens one."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "open", show=True)]

    def __init__(self, root: Path, before: Run | None = None) -> None:
        super().__init__()
        self._root, self._before = root, before
        self._glances = find.Glances()
        self._runs: dict[str, Run] = {}

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        yield DataTable(cursor_type="row", zebra_stripes=False)
        yield Footer()

    def on_mount(self) -> None:
        self._table.add_columns(*HEAD)
        self.look()
        self.set_interval(_EVERY_LIST, self.look)

    @property
    def _table(self) -> "DataTable[Text]":
        return self.query_one(DataTable)

    def look(self) -> None:
        """Read the list again; the cursor stays on its run."""
        runs = find.runs(self._root)[: find.MOST]
        table = self._table
        chosen = self._chosen() or self._before
        glances = self._glances.look(runs)
        going = sum(one.active for one in glances)
        count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        self.query_one(Panel).show(Text(f"{count} in {self._root}, {going} going on", "bold"))
        table.clear()
        self._runs = {str(run.path): run for run in runs}
        for one in glances:
            cells = [
                Text(c.text, c.style, justify="right" if c.right else "left") for c in row(one)
            ]
            table.add_row(*cells, key=str(one.run.path))
        if chosen and str(chosen.path) in self._runs:
            table.move_cursor(row=table.get_row_index(str(chosen.path)))

    def _chosen(self) -> Run | None:
        names = list(self._runs)
        at = self._table.cursor_row
        return self._runs[names[at]] if 0 <= at < len(names) else None

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        run = self._runs.get(str(event.row_key.value))
        if run is not None:
            self.app.switch_screen(RunScreen(run, self._root))


class Monitor(App[str]):
    """The application; it begins with `run`, or with the list where that is None.

    Its result is the name of the run that was watched last, if that goes on.
    """

    TITLE = "tatara monitor"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (116, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "detach", "detach"),
        Binding("ctrl+c,ctrl+q", "detach", "detach", show=False, priority=True),
    ]
    CSS = _STYLE

    def __init__(self, root: Path, run: Run | None) -> None:
        super().__init__()
        self._root, self._run = root, run

    def on_mount(self) -> None:
        first = RunScreen(self._run, self._root) if self._run else ListScreen(self._root)
        self.push_screen(first)
        if not self.is_headless:
            self.set_interval(EVERY, self._end_without_terminal)

    def _end_without_terminal(self) -> None:
        """A closed terminal usually ends its programs; one that it forgets would spin for ever."""
        watched = select.poll()
        watched.register(sys.__stdin__ or 0, 0)
        if any(state & (select.POLLHUP | select.POLLERR) for _, state in watched.poll(0)):
            os._exit(EXIT_DONE)  # there is nothing left to draw on, or to give back

    def action_detach(self) -> None:
        """Leave; the training goes on."""
        screen = self.screen
        self.exit(screen.going_on if isinstance(screen, RunScreen) else None)
