"""Git LFS pointers: the few lines of text that lie where a large file was not downloaded."""

import os

_BEGINNING = b"version https://git-lfs.github.com/spec/"
WHAT_TO_DO = "a Git LFS pointer in place of the file: run git lfs pull in the dataset's folder"


def is_pointer(path: str | os.PathLike[str]) -> bool:
    """Whether the file holds a pointer; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False
