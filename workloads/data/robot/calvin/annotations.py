"""Reads `auto_lang_ann.npy`, a pickle, without running code in it.

A pickle may name any function and have it called. This one needs five names, all of numpy, to put
its arrays together; every other name ends the reading.
"""

import pickle
from dataclasses import dataclass
from operator import index
from pathlib import Path
from tokenize import TokenError
from typing import Any, NoReturn

import numpy as np

from workloads import missing_files
from workloads.errors import UserError

FILE = Path("lang_annotations/auto_lang_ann.npy")
# Written as numpy.core before numpy 2, as numpy._core since.
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
}
# By the version of the format: the second one has room for longer headers.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, MemoryError, OSError, UnicodeDecodeError, TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Frames `start` to `end`, both included, and what was done in them."""

    start: int
    end: int
    text: str
    task: str


class _Forbidden(Exception):
    """The pickle names something that is no part of an array."""


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        short = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (short, name) in _ALLOWED:
            return _ALLOWED[short, name]
        raise _Forbidden(f"{module}.{name}")


def load(file: Path) -> list[Span]:
    """The annotated spans of `auto_lang_ann.npy` in its order.

    Raises UserError for a file that is damaged, holds something else, or names code.
    """
    content = _content(file)
    spans = _part(file, content, "info", "indx")
    texts = _part(file, content, "language", "ann")
    tasks = _part(file, content, "language", "task")
    if not len(spans) == len(texts) == len(tasks):
        _refuse(file, f"{len(spans)} spans, {len(texts)} texts and {len(tasks)} tasks")
    found = []
    for number, (span, text, task) in enumerate(zip(spans, texts, tasks, strict=True)):
        try:
            start, end = map(index, span)
        except (TypeError, ValueError):
            _refuse(file, f"{span!r} as span {number}, which is no pair of frame numbers")
        if not 0 <= start <= end:
            _refuse(file, f"span {number} from frame {start} to {end}")
        if not _is_text(text) or not _is_text(task):
            _refuse(file, f"{text!r} of task {task!r} as what span {number} shows")
        found.append(Span(start, end, str(text), str(task)))
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a text that every file and tokenizer takes."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _content(file: Path) -> Any:
    if missing_files.is_pointer(file):
        _refuse(file, missing_files.WHAT_TO_DO)
    try:
        with open(file, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = _HEADERS[version](stream)
            if header[2] != np.dtype(object):
                _refuse(file, f"an array of {header[2]}")
            content = _Arrays(stream).load()
    except PermissionError as error:
        raise UserError(
            f"{file}: expected a file that can be read, found {error}; copy it again"
        ) from None
    except _Forbidden as error:
        raise UserError(
            f"{file}: expected a pickle of arrays, texts and numbers, found {error} in it, which "
            "could run code; nothing was run: take the file from the original dataset"
        ) from None
    except _BROKEN as error:
        _refuse(file, f"a damaged file ({' '.join(str(error).split()) or type(error).__name__})")
    return content.item() if isinstance(content, np.ndarray) and content.size == 1 else content


def _part(file: Path, content: Any, section: str, key: str) -> list[Any]:
    place = content.get(section) if isinstance(content, dict) else None
    found = place.get(key) if isinstance(place, dict) else None
    if not isinstance(found, list | tuple | np.ndarray):
        _refuse(file, f"no list {section}.{key}")
    return list(found)


def _refuse(file: Path, found: str) -> NoReturn:
    raise UserError(
        f"{file}: expected the annotations of a CALVIN split, found {found}; take the file from "
        "the original dataset"
    )
