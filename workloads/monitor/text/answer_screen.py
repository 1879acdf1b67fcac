"""Held-out questions, and what the model answered at each evaluation."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer

from workloads.monitor.reading.samples import SampleReader
from workloads.monitor.text import frame
from workloads.monitor.text.panel import Panel
from workloads.run import Run

_EVERY = 3.0
_STEPS = 12


class AnswerScreen(Screen[None]):
    """The questions of a run in their order, each with its answers as the training goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,a", "back", "back to the run")]

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._reader = SampleReader(run)

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        with VerticalScroll(id="answer-scroll"):
            yield Panel(id="answers")
        yield Footer()

    def on_mount(self) -> None:
        self.read()
        self.query_one("#answer-scroll").focus()
        self.set_interval(_EVERY, self.read)

    def read(self) -> None:
        """Show what has been answered by now."""
        asked = self._reader.read()
        title = frame.answers_title(asked) if asked else "no held-out questions answered yet"
        self.query_one("#top", Panel).show(Text(title, "bold"))
        text = (
            frame.answers(asked, _STEPS)
            if asked
            else Text("evaluation.samples=4 answers that many at each evaluation", "dim")
        )
        text.overflow = "fold"
        self.query_one("#answers", Panel).show(text)

    def action_back(self) -> None:
        self.dismiss()
