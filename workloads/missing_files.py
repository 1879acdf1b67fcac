"""Files without their content: Git LFS pointers, and links that lead out of a container."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workloads.errors import UserError

_BEGINNING = b"version https://git-lfs.github.com/spec/"
WHAT_TO_DO = "a Git LFS pointer in place of the file: run git lfs pull in the dataset's folder"


def is_pointer(path: str | os.PathLike[str]) -> bool:
    """Whether the file holds a pointer; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def lost_link(path: str | os.PathLike[str]) -> str:
    """Description of the broken link in a path: "a link to …", or nothing."""
    whole = Path(path)
    for part in (*reversed(whole.parents), whole):
        if os.path.islink(part) and not os.path.exists(part):
            return f"{part} is a link to {os.readlink(part)}, which is not there"
    return ""


FIX = "in a container mount what it leads to, or set TATARA_DATA to the folder itself"


def refuse_lost_link(path: str | os.PathLike[str]) -> None:
    """Raise UserError where a path leads through a broken link."""
    if found := lost_link(path):
        raise UserError(f"expected a file or folder, found that {found}; {FIX}")


def texts(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested settings with its dotted name."""
    for name, value in values.items():
        dotted = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from texts(value, dotted)
        elif isinstance(value, list | tuple):
            yield from texts({str(number): item for number, item in enumerate(value)}, dotted)
        elif isinstance(value, str):
            yield dotted, value
