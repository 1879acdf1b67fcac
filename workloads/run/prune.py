"""Finds files to remove: old checkpoints of finished runs."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import UserError
from workloads.run.best import best_step
from workloads.run.directory import Run, rows_in
from workloads.run.events import Event
from workloads.run.integrity import STAGING, delete, sealed, set_aside, step_of
from workloads.run.owner import Owner

_RECENT = 60.0  # seconds


@dataclass(frozen=True)
class Removable:
    """An item that can be removed: kind, path or name, size in bytes, and reason."""

    kind: str
    name: str
    size: int
    why: str


def old_checkpoints(outputs: Path, keep: int, left: Callable[[str], None]) -> Iterator[Removable]:
    """Checkpoints of finished runs but the newest `keep` and the best, and incomplete ones there.

    An active, stopped or failed run keeps all: it may be resumed from any. What people have put
    beside checkpoints, links too, is not ours to remove. left: gets a sentence for a run that
    cannot be read.
    """
    folders = {path.resolve(): path for path in sorted(outputs.glob("*/*/checkpoints"))}
    for path in folders.values():  # a run may have more names than one, by links
        run = Run(path.parent)
        try:
            yield from list(_old(run, keep)) if _has_finished(run) else ()
        except OSError as error:
            left(f"{run.path}: cannot be read: {error.strerror}")


def _old(run: Run, keep: int) -> Iterator[Removable]:
    whole = sealed(run.checkpoints)
    kept = whole[max(0, len(whole) - keep) :]
    best = best_step(run, {step_of(folder) for folder in whole})
    aside = set_aside(run.checkpoints)
    for folder in sorted(run.checkpoints.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder in kept:
            continue
        if folder in whole:
            why = "" if step_of(folder) == best else f"{kept[-1].name} is newer"
        elif folder.name == STAGING and not any(folder.iterdir()):
            continue  # each save leaves it, and empty
        elif step_of(folder) >= 0 or folder.name == STAGING:
            why = "never completed"
        else:
            why = "set aside, not used" if folder in aside else ""
        if why:
            yield Removable("checkpoints", str(folder), size_of(folder), why)


def _has_finished(run: Run) -> bool:
    last = None
    for row in rows_in(run.events):
        last = row.get("event")
    # Scores and pushes may follow the end.
    return last in (Event.FINISHED, Event.EVALUATED, Event.EXPORTED, Event.PUSHED) and any(
        row.get("event") == Event.FINISHED for row in rows_in(run.events)
    )


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; raises UserError where a process has its run."""
    with Owner(Run(folder.parent.parent)), _told(folder):
        delete(folder)


def remove(path: Path) -> None:
    """Remove a folder or a file; UserError where that is not possible."""
    with _told(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UserError(
            f"{path}: cannot be removed: {where}: {error.strerror}; give yourself the right to "
            "write there, or remove it as its owner"
        ) from None


def training_now(outputs: Path) -> Run | None:
    """A run with a rank that wrote a heartbeat in the last minute and has not ended, if any."""
    for path in outputs.glob("*/*/status"):
        run = Run(path.parent)
        for status in run.statuses().values():
            if "code" not in status and abs(time.time() - status.get("time", 0)) < _RECENT:
                return run
    return None


def size_of(path: Path) -> int:
    """Bytes on disk below a path; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                facts = os.lstat(os.path.join(folder, name))
            except OSError:
                continue  # gone meanwhile
            seen[(facts.st_dev, facts.st_ino)] = facts.st_blocks * 512
    return sum(seen.values())
