"""The live view in a terminal: a run, and the list of all runs behind it."""

import os
import select
import sys
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from workloads.errors import EXIT_DONE
from workloads.monitor.numbers import clean
from workloads.monitor.text.list_screen import ListScreen, OpenRun
from workloads.monitor.text.run_screen import EVERY, AllRuns, RunScreen
from workloads.run import Run

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
#ranks-scroll { scrollbar-gutter: stable; }
#ranks, #machine, #sparks { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
#events { height: 5; }
#sparks { display: none; }
#error { height: auto; max-height: 8; color: $text-error; border-title-color: $text-error; }
#log-scroll, #answer-scroll { height: 1fr; padding: 0 1; }
#log, #answers { height: auto; }
Input { height: 3; }
.-narrow.-low #ranks-scroll { max-height: 5; }
.-narrow.-low #events { height: 4; }

.-wide #body { layout: horizontal; }
.-wide #main { width: 1fr; height: 100%; }
.-wide #side { width: 52%; min-width: 62; max-width: 78; height: 100%; margin-left: 2; }
.-wide #ranks-scroll { max-height: 60%; }
.-wide #sparks { display: block; }
.-wide.-high #events { height: 9; }

DataTable { height: 1fr; background: $background; }
"""


class Monitor(App[str]):
    """The application; it begins with `run`, or with the list where that is None.

    Its result is the name of the run that was watched last, if it is still active.
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
        first = RunScreen(self._run) if self._run else ListScreen(self._root)
        self.push_screen(first)
        if not self.is_headless:
            self.set_interval(EVERY, self._end_without_terminal)

    def on_all_runs(self, message: AllRuns) -> None:
        self.switch_screen(ListScreen(self._root, message.before))

    def on_open_run(self, message: OpenRun) -> None:
        self.switch_screen(RunScreen(message.run))

    def announce(self, text: str) -> None:
        """Show a notification; called from another thread."""
        if self.is_running:
            self.call_from_thread(self.notify, clean(text), timeout=30.0, markup=False)

    def _end_without_terminal(self) -> None:
        """End when the terminal is gone; otherwise this process could loop forever."""
        watched = select.poll()
        watched.register(sys.__stdin__ or 0, 0)
        if any(state & (select.POLLHUP | select.POLLERR) for _, state in watched.poll(0)):
            os._exit(EXIT_DONE)  # there is no terminal left to draw on or to restore

    def action_detach(self) -> None:
        """Leave; the training goes on."""
        screen = self.screen
        self.exit(screen.going_on if isinstance(screen, RunScreen) else None)
