"""One picture and no more: for scripts, pipes, and terminals that cannot show a live view."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from workloads.monitor.reading import find
from workloads.monitor.reading.hardware import Hardware, Reading
from workloads.monitor.reading.record import ENDED
from workloads.monitor.reading.snapshot import Snapshot, Watch
from workloads.monitor.text import frame, plain
from workloads.monitor.text.listing import listing
from workloads.run import Run

_PATIENCE = 2.6  # seconds to see whether heartbeats of other machines change; one comes each second
_PAUSE = 0.2
_ASCII = str.maketrans(
    {"━": "=", "─": "-", "█": "#", "░": ".", "·": "-", "…": "~", "●": "o", "°": " "}
)


def look(run: Run) -> tuple[Snapshot, Reading]:
    """A run with all its metrics read, watched until it is sure which of its ranks are alive."""
    hardware, watch = Hardware(), Watch(run)
    begun = time.monotonic()
    here = hardware.look()
    now = watch.look(here.gpus)
    while now.reading is not None or (
        (_unsure(now) or watch.pending) and time.monotonic() < begun + _PATIENCE
    ):
        time.sleep(_PAUSE if now.reading is None else 0)
        now = watch.look(here.gpus)
    time.sleep(max(0.0, begun + _PAUSE - time.monotonic()))  # a span to measure the processors in
    here = hardware.look()
    hardware.close()
    return watch.look(here.gpus), here


def _unsure(now: Snapshot) -> bool:
    """Whether some rank's last word has another machine's date, and no newer one came yet."""
    live = [one for one in now.ranks if one.code is None]
    return now.phase not in ENDED and any(not one.sure for one in live)


def as_dict(root: Path, run: Run | None) -> dict[str, Any]:
    """One run, or the list of all (`run` is None)."""
    if run is not None:
        return plain.as_dict(*look(run))
    glances = find.Glances().look(find.some_runs(root)[: find.MOST])
    return {"format": plain.FORMAT, "runs": [plain.brief(one) for one in glances]}


def show(root: Path, run: Run | None) -> None:
    """Print the same for people, as wide as the terminal is."""
    console = Console(highlight=False)
    # A legacy encoding has no braille: the same curve in dots and colons.
    ascii = "utf" not in console.encoding.lower()
    if run is None:
        glances = find.Glances().look(find.some_runs(root)[: find.MOST])
        text = listing(glances, console.width)
    else:
        text = frame.whole(*look(run), console.width, ascii=ascii)
    if ascii:
        legible = text.plain.translate(_ASCII)
        text = Text(legible.encode(console.encoding, "replace").decode(console.encoding))
    console.print(text, no_wrap=True, overflow="ignore", crop=False)
