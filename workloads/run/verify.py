"""Verifies a run, or a copy of one: its sealed checkpoints and its exported model.

States: `whole`, `damaged`, `missing` (named by the run's events), `no seal` (cannot be verified) or
`left out` (not used by the run).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.run.directory import Run, rows_in
from workloads.run.events import Event
from workloads.run.integrity import (
    PREFIX,
    SEAL,
    files_of,
    read_seal,
    set_aside,
    step_aside,
    step_of,
    verify_checkpoint,
)

_FINE = ("whole", "left out")


@dataclass(frozen=True)
class Verified:
    """One folder: its relative name, state, bytes, and notes.

    unsealed: files in it that its seal does not list, which cannot be verified.
    """

    name: str
    state: str
    size: int = 0
    notes: tuple[str, ...] = ()
    unsealed: tuple[str, ...] = ()


def all_whole(found: list[Verified]) -> bool:
    """Whether at least one folder is whole, and none is damaged or missing."""
    return all(item.state in _FINE for item in found) and any(
        item.state == "whole" for item in found
    )


def verify(folder: Path) -> list[Verified]:
    """Verify each checkpoint and `final/` of a run, or one sealed folder.

    Raises UserError for a folder that is neither, or that may not be read.
    """
    try:
        return _all_of(folder)
    except PermissionError as error:
        raise UserError(
            f"{error.filename}: cannot be read: {error.strerror}; verify as its owner"
        ) from None


def _all_of(folder: Path) -> list[Verified]:
    if (folder / SEAL).is_file() or step_of(folder) >= 0:
        return [_verified(folder, folder.name)]
    if _is_checkpoints(folder):
        return list(_checkpoints(folder, Run(folder.parent)))
    if _is_run(folder):
        run = Run(folder)
        return [*_checkpoints(run.checkpoints, run), *_final(run)]
    if _is_model(folder):
        return [_verified(folder, folder.name)]
    raise UserError(
        f"{folder}: expected a run, a checkpoint, an exported model or a copy of one, found no "
        f"{SEAL}, checkpoints/ or events.jsonl; name the run's own folder"
    )


def _is_checkpoints(folder: Path) -> bool:
    return folder.is_dir() and any(step_of(path) >= 0 for path in folder.iterdir())


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or a partial copy; a model has a config.json, too."""
    names = ("events.jsonl", "config.json", "checkpoints", "final")
    return any((folder / name).exists() for name in names) and not _is_model(folder)


def _is_model(folder: Path) -> bool:
    return (folder / "tatara.json").is_file() or any(folder.glob("*.safetensors"))


def _checkpoints(folder: Path, run: Run) -> Iterator[Verified]:
    there = [path for path in folder.iterdir() if step_of(path) >= 0] if folder.is_dir() else []
    for path in sorted(there, key=step_of):
        item = _verified(path, f"{folder.name}/{path.name}")
        # A running training deletes old ones meanwhile.
        if path.is_dir():
            yield item
    aside = set_aside(folder)
    for path in aside:
        note = "set aside by the run, which uses it no more"
        yield Verified(f"{folder.name}/{path.name}", "left out", notes=(note,))
    rows = _events(run, Event.CHECKPOINT)
    saved = [row["step"] for row in rows if isinstance(row.get("step"), int)]
    # Older ones may have been deleted, but never the newest.
    if saved and saved[-1] not in {*map(step_of, there), *map(step_aside, aside)}:
        note = "the newest that the run has saved, by events.jsonl"
        yield Verified(f"{folder.name}/{PREFIX}{saved[-1]}", "missing", notes=(note,))


def _final(run: Run) -> Iterator[Verified]:
    if run.final.is_dir():
        yield _verified(run.final, "final")
    elif any(
        Path(str(row.get("path"))).name == run.final.name for row in _events(run, Event.EXPORTED)
    ):
        yield Verified("final", "missing", notes=("the run has exported it, by events.jsonl",))


def _events(run: Run, name: Event) -> list[dict[str, Any]]:
    """The run's events of one name; lines that a copy has damaged are skipped."""
    return [
        row for row in rows_in(run.events) if isinstance(row, dict) and row.get("event") == name
    ]


def _verified(folder: Path, name: str) -> Verified:
    files = files_of(folder)
    size = sum(path.stat().st_size for path in files if path.exists())
    if not (folder / SEAL).is_file():
        return Verified(name, "no seal", size, (f"no {SEAL}: {_why_unsealed(folder)}",))
    damage = verify_checkpoint(folder)
    if damage:
        return Verified(name, "damaged", size, tuple(damage))
    listed = read_seal(folder)["files"]
    names = (path.relative_to(folder).as_posix() for path in files)
    return Verified(
        name, "whole", size, unsealed=tuple(name for name in names if name not in listed)
    )


def _why_unsealed(folder: Path) -> str:
    if step_of(folder) >= 0:
        return "never finished, deleted in part or copied in part"
    return "exported before exports had one, or copied in part; `tatara export RUN` writes it again"
