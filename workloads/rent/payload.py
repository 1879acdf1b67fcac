"""Files to send to the machine: those that git lists, the profile's data, the profile itself.

Secrets are never sent this way; a file that holds one is refused.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.environment import is_secret
from workloads.errors import UserError
from workloads.rent.remote import harmless

_SHORTEST = 8  # shortest secret to search for, in characters
_LARGEST = 4 << 20  # bytes of the largest file to search: nobody writes a token into a larger one


@dataclass(frozen=True)
class Payload:
    """Names below the checkout; data: those that git does not list and the profile reads."""

    root: Path
    files: tuple[str, ...]
    data: tuple[str, ...]
    left: int  # files that git neither lists nor ignores

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(
            path.stat().st_size
            for name in (*self.files, *self.data)
            for path in _in(self.root / name)
        )


def payload(root: Path, values: Any, env: Mapping[str, str]) -> Payload:
    """All files of this checkout that a run of a resolved profile (its values) needs.

    Raises UserError where this is no checkout of git, where data lie outside of it, and where a
    file holds the value of one of the environment's secrets.
    """
    files = tuple(name for name in _git(root, "ls-files") if (root / name).is_file())
    left = len(_git(root, "ls-files", "--others", "--exclude-standard"))
    data = tuple(dict.fromkeys(_data(root, values, set(files))))
    secrets = {
        name: value.encode()
        for name, value in env.items()
        if is_secret(name) and len(value) >= _SHORTEST
    }
    for name in files:
        path = root / name
        if path.stat().st_size <= _LARGEST:
            content = path.read_bytes()
            for secret, value in secrets.items():
                if value in content:
                    raise UserError(
                        f"{name}: expected no secret in a file that git lists, found the value of "
                        f"{secret}; take it out, and make a new one: it is in your history"
                    )
    return Payload(root, files, data, left)


def _git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(root), *words, "-z"],
        capture_output=True,
        text=True,
        errors="replace",
        env=harmless(os.environ),
    )
    if done.returncode:
        raise UserError(
            f"{root}: expected a checkout of git, which lists the files to send, found "
            f"{done.stderr.strip() or 'none'}; start in the checkout"
        )
    return [name for name in done.stdout.split("\0") if name]


def _data(root: Path, values: Any, listed: set[str]) -> Iterator[str]:
    """Existing paths in settings that git does not list."""
    for text in _texts(values):
        path = Path(text)
        if "/" not in text or "\n" in text or len(text) > 500 or not path.exists():
            continue
        inside = path.resolve()
        if path.is_absolute() or not inside.is_relative_to(root.resolve()):
            raise UserError(
                f"{text}: expected data inside of the checkout, by a relative path, or on the hub, "
                "found one of this machine alone; link or move it there"
            )
        if any(str(file.relative_to(root)) not in listed for file in _in(root / path)):
            yield str(path)


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


def _in(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else iter([path])
