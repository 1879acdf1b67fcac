"""What takes long to find out about a file, kept beside others in a folder of our own."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def fingerprint(path: Path, version: str) -> str:
    """Changes with the file's place, size and time of change, and with the format `version`."""
    facts = path.stat()
    words = [version, os.fspath(path.resolve()), facts.st_size, facts.st_mtime_ns]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def load_or_build(
    path: Path, version: str, cache_dir: Path | None, build: Callable[[], Arrays]
) -> Arrays:
    """The arrays that `build` returns, from `cache_dir` while `path` is as it was then.

    Without a folder nothing is written. A folder that cannot be written is reported once a file
    and costs time only.
    """
    if cache_dir is None:
        return build()
    kept = cache_dir / f"{fingerprint(path, version)}.npz"
    arrays = _load(kept)
    if arrays is None:
        arrays = build()
        _keep(kept, arrays)
    return arrays


def _load(kept: Path) -> Arrays | None:
    if not kept.is_file():
        return None
    try:
        with np.load(kept, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): built anew", kept, error)
        return None


def _keep(kept: Path, arrays: Arrays) -> None:
    partial = kept.with_name(f"{kept.stem}.{os.getpid()}.partial.npz")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, allow_pickle=False, **arrays)
        os.replace(partial, kept)
    except OSError as error:
        log.warning("%s cannot be written (%s): the index is built at every start", kept, error)
