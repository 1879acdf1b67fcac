"""A folder that one process builds while the others wait for it.

Whoever comes first builds, the others on the same machine wait for it. A build that dies leaves
nothing that could be taken for a whole one: the folder appears under its name in one step, with
the sizes of its files in it.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workloads.errors import UserError

COMPLETE = "complete.json"
_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def nothing() -> None:
    """No report of progress."""


def built_once(
    folder: Path, build: Callable[[Path], None], progress: Callable[[], None] = nothing
) -> bool:
    """Make sure that `folder` is there and whole; True where this call has built it.

    `build` fills the empty folder that it is given; what it raises goes through, and nothing is
    left. `progress` is called again and again while waiting. A damaged folder is built again.
    """
    if is_whole(folder):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock"), progress):
            if is_whole(folder):
                return False
            _build(folder, build)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"{folder.parent}: expected to write a cache there, found: {error.strerror}; "
            "make room or give it another place"
        ) from error
    return True


def is_whole(folder: Path) -> bool:
    """Whether all files of a built folder are there in their full size."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    mine = f".{folder.name}-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{mine}*"):  # of builders that were killed
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f"{mine}{os.getpid()}")
    part.mkdir()
    try:
        build(part)
        sizes = {file.name: file.stat().st_size for file in part.iterdir()}
        (part / COMPLETE).write_text(json.dumps(sizes), encoding="utf-8")
        _put(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _put(part: Path, folder: Path) -> None:
    """Give the folder its name; where another machine was faster, its folder stays."""
    if is_whole(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not is_whole(folder):
            raise


@contextmanager
def _lock(path: Path, progress: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when its holder dies."""
    with path.open("w") as file:
        while not taken(file.fileno()):
            progress()
            time.sleep(_POLL_SECONDS)
        yield


def taken(handle: int) -> bool:
    """Whether an open file is this process's alone now; True where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Without locks several build, and the first to finish wins: slower, not wrong.
        if error.errno not in _NO_LOCKS:
            raise
    return True
