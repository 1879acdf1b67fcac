"""RoboVLMs' JSON configs, merged with their parents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.json_files import read_json

OVERRIDE = "__override__"
_PARENT = "parent"


@dataclass(frozen=True)
class Inherited:
    """A merged config, its parents' files from the nearest on, and the sections that `__override__`
    took whole from a child: there, training merges them all the same."""

    config: dict[str, Any]
    parents: tuple[Path, ...]
    overridden: tuple[str, ...]


def import_config(path: str | Path) -> dict[str, Any]:
    """The config of a JSON file, merged with its parents as RoboVLMs' evaluation does.

    Sections merge, lists and single values are replaced; a section with `"__override__": true`
    replaces the parent's whole, and the key goes. Raises UserError for a file that is missing or
    no JSON object, and for parents that form a ring.
    """
    return inherited(path).config


def inherited(path: str | Path) -> Inherited:
    """`import_config`, with the file that each field came from.

    Raises UserError for parents that go round in a circle, or that are no file names.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    file = Path(path)
    while True:
        if any(file.resolve() == known.resolve() for known, _ in chain):
            raise UserError(
                f"{chain[-1][0]}: expected parents that end, found {file} again; remove one of them"
            )
        own = read_json(file, unique=True)
        chain.append((file, own))
        parent = own.get(_PARENT)
        if not parent:
            break
        if not isinstance(parent, str):
            raise UserError(f"{file}: expected a file's name as parent, found {parent!r}")
        file = _parent_file(file, parent)
    merged: dict[str, Any] = {}
    overridden: list[str] = []
    for _, own in reversed(chain):
        _merge(merged, own, "", overridden)
    return Inherited(merged, tuple(file for file, _ in chain[1:]), tuple(overridden))


def _parent_file(child: Path, parent: str) -> Path:
    """Path of a parent: from the working directory, as in RoboVLMs, else from the child's folder
    or one above it: RoboVLMs' own, wherever the command runs."""
    for folder in (Path(), child.parent, *child.resolve().parents):
        if (folder / parent).is_file():
            return folder / parent
    raise UserError(
        f"{child}: expected its parent {parent} in {Path.cwd()} or {child.parent} or above, found "
        "none; copy it there"
    )


def _merge(target: dict[str, Any], own: dict[str, Any], place: str, overridden: list[str]) -> None:
    for key, value in own.items():
        known = target.get(key)
        if isinstance(value, dict) and value.get(OVERRIDE):
            target[key] = {name: item for name, item in value.items() if name != OVERRIDE}
            overridden.append(f"{place}{key}")
        elif isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value, f"{place}{key}.", overridden)
        else:
            target[key] = value
