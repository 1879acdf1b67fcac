"""A part of the live view."""

from rich.text import Text
from textual.widgets import Static


class Panel(Static):
    """Text that is drawn again only if it has changed."""

    shown: Text | None = None

    def show(self, text: Text) -> None:
        before, self.shown = self.shown, text
        if before is None or before != text:
            # A new layout costs more than all else; most texts keep their height.
            same_height = before is not None and before.plain.count("\n") == text.plain.count("\n")
            self.update(text, layout=not same_height)

    @property
    def room(self) -> int:
        """Columns for its text."""
        return self.content_size.width or self.container_size.width
