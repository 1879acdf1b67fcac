"""Prints one frame: for scripts, pipes, and terminals without support for the live view."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from workloads.monitor.reading import as_json, find
from workloads.monitor.reading.hardware import Hardware, MachineReading
from workloads.monitor.reading.record import ENDED
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.run_table import older_runs
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text import frame
from workloads.monitor.text.listing import listing
from workloads.run import Run

_PATIENCE = 2.6  # seconds to observe heartbeats of other machines, which come once a second
_PAUSE = 0.2
_ASCII = str.maketrans(
    {"━": "=", "─": "-", "█": "#", "░": ".", "·": "-", "…": "~", "●": "o", "°": " "}
)


def read(run: Run) -> tuple[Snapshot, MachineReading]:
    """A run with all its metrics, read until the state of all ranks is certain."""
    hardware, reader = Hardware(), RunReader(run)
    begun = time.monotonic()
    here = hardware.read()
    snapshot = reader.read(here.gpus)
    while snapshot.reading is not None or (
        (_unsure(snapshot) or reader.pending) and time.monotonic() < begun + _PATIENCE
    ):
        time.sleep(_PAUSE if snapshot.reading is None else 0)
        snapshot = reader.read(here.gpus)
    time.sleep(max(0.0, begun + _PAUSE - time.monotonic()))  # an interval to measure CPU use in
    here = hardware.read()
    hardware.close()
    return reader.read(here.gpus), here


def read_list(root: Path) -> tuple[list[Snapshot], int]:
    """The newest runs, with all their events read, and how many older ones there are."""
    runs, listed = find.some_runs(root), find.RunList()
    shown, older = runs[: find.MOST], len(runs[find.MOST :])
    snapshots = listed.read(shown)
    while any(snapshot.reading is not None for snapshot in snapshots):
        snapshots = listed.read(shown)
    return snapshots, older


def _unsure(snapshot: Snapshot) -> bool:
    """Whether a heartbeat is dated by another machine, and no newer one has come yet."""
    live = [rank for rank in snapshot.ranks if rank.code is None]
    return snapshot.phase not in ENDED and any(not rank.sure for rank in live)


def as_dict(root: Path, run: Run | None) -> dict[str, Any]:
    """One run, or the list of all (`run` is None)."""
    if run is not None:
        return as_json.as_dict(*read(run))
    snapshots, older = read_list(root)
    briefs = [as_json.brief(snapshot) for snapshot in snapshots]
    return {"format": as_json.FORMAT, "runs": briefs, "older": older}


def show(root: Path, run: Run | None) -> None:
    """Print the same as text, as wide as the terminal."""
    console = Console(highlight=False)
    # A legacy encoding has no braille: draw the curve with dots and colons.
    ascii = "utf" not in console.encoding.lower()
    if run is None:
        snapshots, older = read_list(root)
        text = listing(snapshots, console.width)
        if older:
            text.append(f"\n{older_runs(older)}", "dim")
    else:
        text = frame.whole(*read(run), console.width, ascii=ascii)
    if ascii:
        legible = text.plain.translate(_ASCII)
        text = Text(legible.encode(console.encoding, "replace").decode(console.encoding))
    console.print(text, no_wrap=True, overflow="ignore", crop=False)
