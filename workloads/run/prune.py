"""Finds files to remove: old checkpoints of finished runs."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import UserError
from workloads.run.best import best_step
from workloads.run.directory import Run, rows_in
from workloads.run.events import Event
from workloads.run.integrity import sealed, step_of
from workloads.run.owner import Owner


@dataclass(frozen=True)
class Removable:
    """An item that can be removed: kind, path or name, size in bytes, and reason."""

    kind: str
    name: str
    size: int
    why: str


def old_checkpoints(outputs: Path, keep: int) -> Iterator[Removable]:
    """Checkpoints of finished runs but the newest `keep` and the best, and incomplete ones there.

    An active, stopped or failed run keeps all: it may be resumed from any.
    """
    for path in sorted(outputs.glob("*/*/checkpoints")):
        run = Run(path.parent)
        if not _has_finished(run):
            continue
        whole = sealed(path)
        kept = whole[max(0, len(whole) - keep) :]
        best = best_step(run, {step_of(folder) for folder in whole})
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            if folder not in kept and (folder not in whole or step_of(folder) != best):
                why = f"{kept[-1].name} is newer" if folder in whole else "never completed"
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
    with Owner(Run(folder.parent.parent)):
        remove(folder)


def remove(path: Path) -> None:
    """Remove a folder or a file; UserError where that is not possible."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be removed: {error.strerror}; it belongs to uid {path.lstat().st_uid}"
        ) from None


def size_of(path: Path) -> int:
    """Bytes on disk below a path; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, files in os.walk(path):
        for name in files:
            facts = os.lstat(os.path.join(folder, name))
            seen[(facts.st_dev, facts.st_ino)] = facts.st_blocks * 512
    return sum(seen.values())
