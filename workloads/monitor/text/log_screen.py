"""The end of a rank's log, as it grows."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer

from workloads.monitor.reading.logs import log_of, log_tail, notable_ranks
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text.panel import Panel

_EVERY = 2.0
_LINES = 1000


class LogScreen(Screen[None]):
    """The log of one rank; first that of a rank in trouble."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,o", "back", "back to the run"),
        Binding("n", "rank(1)", "next rank"),
        Binding("N", "rank(-1)", "previous rank", show=False),
    ]

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._rank = next(iter(notable_ranks(snapshot)), None)

    def compose(self) -> ComposeResult:
        yield Panel(id="top")
        with VerticalScroll(id="log-scroll"):
            yield Panel(id="log")
        yield Footer()

    def on_mount(self) -> None:
        self.read()
        self.query_one("#log-scroll", VerticalScroll).focus()
        self.set_interval(_EVERY, self.read)

    def read(self) -> None:
        """Show the log's end; a view that is at the end stays there."""
        if self._rank is None:
            self.query_one("#top", Panel).show(Text("no rank has started yet", "bold"))
            return
        path = log_of(self._snapshot, self._rank)
        tail = log_tail(path, _LINES)
        cut = "" if tail is None or tail.whole else f", its last {len(tail.lines):,} lines"
        self.query_one("#top", Panel).show(
            Text(f"log of rank {self._rank.rank}: {path}{cut}", "bold")
        )
        scroll = self.query_one("#log-scroll", VerticalScroll)
        at_end = scroll.is_vertical_scroll_end
        lines = tail.lines if tail else ("nothing yet",)
        self.query_one("#log", Panel).show(Text("\n".join(lines), overflow="fold"))
        if at_end:
            self.call_after_refresh(scroll.scroll_end, animate=False)

    def action_rank(self, by: int) -> None:
        """Show the log of the next rank, or of the one before."""
        ranks = [rank.rank for rank in self._snapshot.ranks]
        if self._rank is not None:
            at = (ranks.index(self._rank.rank) + by) % len(ranks)
            self._rank = self._snapshot.ranks[at]
            self.query_one("#log-scroll", VerticalScroll).scroll_end(animate=False)
            self.read()

    def action_back(self) -> None:
        self.dismiss()
