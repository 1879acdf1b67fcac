"""One run in the terminal, as it goes on."""

import math
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from workloads.monitor.reading.curve import Curve
from workloads.monitor.reading.curve_view import CurveView
from workloads.monitor.reading.hardware import Hardware, MachineReading
from workloads.monitor.reading.logs import error_log
from workloads.monitor.reading.metric_names import metric_names
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text import frame
from workloads.monitor.text.answer_screen import AnswerScreen
from workloads.monitor.text.log_screen import LogScreen
from workloads.monitor.text.panel import Panel
from workloads.run import Run

# Seconds between two readings. Heartbeats come every second, but redrawing takes 30 ms of a
# processor, and a training on two should not lose more than half a percent to it.
EVERY = 3.0
_READING = 0.05  # the same while there is more to read
_EVENTS = 50
_LOG = 6  # lines of a log beside its error


class AllRuns(Message):
    """Message: show the list, with the cursor on this run."""

    def __init__(self, before: Run) -> None:
        super().__init__()
        self.before = before


class RunScreen(Screen[None]):
    """One run; leaving it leads to the list of all."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,l", "all_runs", "all runs"),
        Binding("m", "metric(1)", "next curve"),
        Binding("M", "metric(-1)", "previous curve", show=False),
        Binding("left", "cursor(-1)", "values", key_display="← →", priority=True),
        Binding("right", "cursor(1)", "values", show=False, priority=True),
        Binding("shift+left", "cursor(-20)", show=False, priority=True),
        Binding("shift+right", "cursor(20)", show=False, priority=True),
        Binding("plus,equals_sign", "zoom(0.5)", "zoom", key_display="+ - 0"),
        Binding("minus", "zoom(2.0)", show=False),
        Binding("0", "whole", show=False),
        Binding("s", "scale", "log scale"),
        Binding("o", "log", "rank's log"),
        Binding("a", "answers", "answers"),
    ]

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._reader = RunReader(run)
        self.hardware = Hardware()
        self._view = CurveView()
        self._window: tuple[object, dict[str, Curve]] | None = None
        self._seen: tuple[Snapshot, MachineReading] | None = None

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        yield Panel(id="warnings")
        yield Panel(id="error", classes="titled")
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
        self._panel("error").display = False
        self.call_after_refresh(self.read)
        self.set_interval(EVERY, self.read)

    def on_unmount(self) -> None:
        self.hardware.close()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def read(self) -> None:
        """Read new data and show it."""
        here = self.hardware.read()
        first = self._seen is None
        snapshot = self._reader.read(here.gpus)
        self._seen = snapshot, here
        self.draw()
        if first:
            self.call_after_refresh(self.draw)  # the sizes of all parts are known now
        if snapshot.reading is not None:
            self.set_timer(_READING, self.read)

    def draw(self) -> None:
        """Show the last reading again, in the current size."""
        if self._seen is None or not self.is_current:
            return
        snapshot, here = self._seen
        width = self.size.width - 2
        top = frame.header(snapshot, width).append("\n")
        self._panel("top").show(top.append_text(frame.numbers(snapshot, width)))
        self._show_if_any("warnings", frame.warnings(snapshot, width))
        self._draw_error(snapshot)
        self._draw_curve(snapshot)
        self._draw_side(snapshot, here)

    def _draw_error(self, snapshot: Snapshot) -> None:
        tail = error_log(snapshot, _LOG)
        if tail is not None:
            self._panel("error").border_title = f"end of {tail.path.name}"
        lines = frame.log_lines(tail, self.size.width - 2) if tail else Text()
        self._show_if_any("error", lines)

    def _show_if_any(self, name: str, text: Text) -> None:
        panel = self._panel(name)
        panel.show(text)
        if panel.display != bool(text):
            panel.display = bool(text)
            self.call_after_refresh(self.draw)  # the other parts changed their size

    def _draw_curve(self, snapshot: Snapshot) -> None:
        panel = self._panel("curve")
        snapshot = self._closer(snapshot)
        panel.border_title = frame.curve_title(snapshot, self._view)
        size = panel.content_size
        panel.show(frame.curve(snapshot, size.width, size.height, self._view))

    def _closer(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the zoomed range read again at full detail."""
        if self._view.steps is None:
            return snapshot
        first, last = self._view.steps
        # Read again after 2 % of new steps, not with every step.
        grown = int(50 * math.log(max(1, snapshot.step - first)))
        key = (first, last, grown if last > snapshot.step else 0)
        if self._window is None or self._window[0] != key:
            self._window = key, self._reader.window(first, last)
        return replace(snapshot, curves={**snapshot.curves, **self._window[1]})

    def _draw_side(self, snapshot: Snapshot, here: MachineReading) -> None:
        machine = self._panel("machine")
        machine.show(frame.hardware(snapshot, here, machine.room))
        machine.border_title = f"this machine ({here.host})"
        ranks = self._panel("ranks")
        ranks.show(frame.ranks(snapshot, ranks.room))
        self.query_one("#ranks-scroll").border_title = "ranks"
        sparks = self._panel("sparks")
        sparks.show(frame.sparks(snapshot, self.hardware, sparks.room))
        sparks.border_title = "over time"
        events = self._panel("events")
        height = events.content_size.height
        events.show(frame.events(snapshot, events.room, min(height, _EVENTS)))
        events.border_title = "last events"

    def _panel(self, name: str) -> Panel:
        return self.query_one(f"#{name}", Panel)

    @property
    def going_on(self) -> str | None:
        """The run's name while it is active."""
        snapshot = self._seen[0] if self._seen else None
        return snapshot.name if snapshot and snapshot.active else None

    def action_metric(self, by: int) -> None:
        """Draw the next metric of the run, at the same steps."""
        names = metric_names(self._seen[0].curves) if self._seen else []
        if names:
            at = names.index(self._view.metric) if self._view.metric in names else -1
            self._change(replace(self._view, metric=names[(at + by) % len(names)]))

    def action_cursor(self, by: int) -> None:
        """Move the cursor by so many points."""
        if self._seen:
            self._change(self._view.moved(self._closer(self._seen[0]), by))

    def action_zoom(self, factor: float) -> None:
        if self._seen:
            self._change(self._view.zoomed(self._seen[0], factor))

    def action_whole(self) -> None:
        """All steps, and no cursor."""
        self._change(replace(self._view, steps=None, cursor=None))

    def action_scale(self) -> None:
        self._change(replace(self._view, log=not self._view.log))

    def _change(self, view: CurveView) -> None:
        self._view = view
        if self._seen:
            self._draw_curve(self._seen[0])

    def action_log(self) -> None:
        if self._seen:
            self.app.push_screen(LogScreen(self._seen[0]), lambda _: self.draw())

    def action_answers(self) -> None:
        self.app.push_screen(AnswerScreen(self._run), lambda _: self.draw())

    def action_all_runs(self) -> None:
        self.post_message(AllRuns(self._run))
