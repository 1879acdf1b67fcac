"""Folders that a run writes to: whether a user may write there, and what lets them."""

import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from workloads.errors import UserError


def existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return here


def may_write(place: Path, uid: int, gid: int) -> bool:
    """Whether a user may make files in a folder, by its mode."""
    if uid == os.getuid():
        return os.access(place, os.W_OK | os.X_OK)
    facts = place.stat()
    if uid in (0, facts.st_uid):
        return uid == 0 or bool(facts.st_mode & stat.S_IWUSR)
    return bool(facts.st_mode & (stat.S_IWGRP if gid == facts.st_gid else stat.S_IWOTH))


def how_to_write(places: Sequence[Path], uid: int, gid: int) -> str:
    """What lets a user write in folders where they may not."""
    other = "name others with TATARA_OUTPUTS and TATARA_CACHE"
    if fixed := [place for place in places if os.statvfs(place).f_flag & os.ST_RDONLY]:
        return f"mount the file system of {shlex.join(map(str, fixed))} for writing, or {other}"
    names = shlex.join(map(str, places))
    if all(place.stat().st_uid == uid for place in places):
        return f"chmod -R u+rwX {names}; where that changes nothing, {other}"
    return f"sudo chown -R {uid}:{gid} {names}"


def check_writable(folders: Sequence[Path], uid: int, gid: int) -> None:
    """Raise UserError where this process could not make, or write in, one of the folders.

    uid, gid: who the folders are for, which behind sudo is another user.
    """
    for folder in folders:
        place = existing(folder)
        if folder.is_symlink() and not folder.exists():
            raise UserError(
                f"expected {folder} to be a folder, found a link to {os.readlink(folder)}, which "
                "is not there; make that folder, or remove the link"
            )
        if not place.is_dir():
            raise UserError(f"expected {place} to be a folder, found a file; move it away")
        if not may_write(place, os.getuid(), os.getgid()):
            raise UserError(
                f"expected {place} to be a folder that you can write, found one of uid "
                f"{place.stat().st_uid}, mode {stat.S_IMODE(place.stat().st_mode):o}; "
                f"{how_to_write([place], uid, gid)}"
            )
