"""Cache of slow per-file facts: one index file for each dataset.

The index is a file with two parts: a table (JSON) of where each array lies, and all arrays one
after the other. Thousands of small files are thus opened at the cost of one.
"""

import hashlib
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

_ALIGNMENT = 8


def load_or_build(
    root: Path,
    paths: Sequence[Path],
    version: str,
    cache_dir: Path | None,
    build: Callable[[Path], Arrays],
) -> list[Arrays]:
    """The arrays that `build` returns for each of `paths`, files of `root` or `root` itself.

    With `cache_dir` they come from the index kept there while a file's size and time of change are
    as they were: what is new or has changed is built, what is gone leaves the index. `version`
    names the format, other ones have an index of their own. An interrupted look keeps what it has
    found out so far. A folder that cannot be written is reported and costs time only.
    """
    if cache_dir is None:
        return [build(path) for path in paths]
    kept = cache_dir / f"{_digest(root, version)}.npz"
    known = _load(kept)
    marks = [_mark(root, path) for path in paths]
    found: dict[str, Arrays] = {}
    try:
        for path, mark in zip(paths, marks, strict=True):
            found[mark] = known[mark] if mark in known else build(path)
    finally:
        whole = found if len(found) == len(marks) else {**known, **found}
        if whole.keys() != known.keys():
            _keep(kept, whole)
    return [found[mark] for mark in marks]


def _digest(root: Path, version: str) -> str:
    words = [version, os.fspath(root.resolve())]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _mark(root: Path, path: Path) -> str:
    """Changes with the file's place below `root`, its size and its time of change."""
    facts = path.stat()
    return f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}"


def _load(kept: Path) -> dict[str, Arrays]:
    if not kept.is_file():
        return {}
    try:
        with np.load(kept, allow_pickle=False) as stored:
            table, content = json.loads(stored["table"].tobytes()), stored["content"]
            return {mark: _unpacked(places, content) for mark, places in table.items()}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): built again", kept, error)
        return {}


def _unpacked(places: Mapping[str, tuple[str, list[int], int]], content: np.ndarray) -> Arrays:
    return {
        name: np.frombuffer(content, kind, math.prod(shape), start).reshape(shape)
        for name, (kind, shape, start) in places.items()
    }


def _keep(kept: Path, index: Mapping[str, Arrays]) -> None:
    table: dict[str, dict[str, tuple[str, tuple[int, ...], int]]] = {}
    pieces: list[bytes] = []
    size = 0
    for mark, arrays in index.items():
        places = table[mark] = {}
        for name, array in arrays.items():
            places[name] = (array.dtype.str, array.shape, size)
            piece = array.tobytes()
            pieces += [piece, bytes(-len(piece) % _ALIGNMENT)]
            size += len(piece) + len(pieces[-1])
    partial = kept.with_name(f"{kept.stem}.{os.getpid()}.partial.npz")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            partial,
            allow_pickle=False,
            table=np.frombuffer(json.dumps(table).encode(), np.uint8),
            content=np.frombuffer(b"".join(pieces), np.uint8),
        )
        os.replace(partial, kept)
    except OSError as error:
        log.warning("%s cannot be written (%s): the index is built at every start", kept, error)
