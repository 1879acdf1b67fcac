"""Reads files that another process is writing, without waiting or locking."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CHUNK = 1 << 18  # bytes read at a time; a longer line is no row of ours and is passed over
LIMIT = 4 << 20  # bytes of one call where none are named: a tenth of a second's work
# The core of json.loads, whose detection of encoding and white space costs a third more.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Follower:
    """The rows of a JSON Lines file, each handed out once, as the file grows.

    A half-written last line waits for its end. Where the file was replaced or cut, `forget` is
    called and all of it is read again. Holds no more than two chunks of it in memory.
    """

    def __init__(self, path: Path, forget: Callable[[], None], tail: int | None = None) -> None:
        """tail: begin with the lines in the file's last so many bytes."""
        self.path = path
        self.offset = 0  # bytes that were read
        self.batch_start = 0  # where the last batch began
        self.damaged = 0  # whole lines that are no JSON object
        self.behind = 0  # unread bytes after the last call
        self._forget = forget
        self._tail = tail
        self._known: tuple[int, int, int] | None = None
        self._skipping = False

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """New rows since the last call, up to about `limit` bytes; none without a file."""
        for batch in self.batches(limit):
            yield from batch

    def batches(self, limit: int | None = None) -> Iterator[list[Row]]:
        """The same rows in batches, as they are read."""
        try:
            file = self.path.open("rb")
        except OSError:
            self.behind = 0
            return
        with file:
            fact = os.fstat(file.fileno())
            seen = (fact.st_ino, fact.st_size, fact.st_mtime_ns)
            if seen == self._known and not self.behind:
                return
            if self._known and (fact.st_ino != self._known[0] or fact.st_size < self.offset):
                self.restart()
                self._forget()
            if self._tail is not None and self._known is None:
                self.offset = _line_start(file.fileno(), fact.st_size - self._tail)
            self._known = seen
            end = min(fact.st_size, self.offset + (limit or LIMIT))
            yield from self._read(file.fileno(), end)
            self.behind = max(0, fact.st_size - self.offset) if end < fact.st_size else 0

    def again(self, start: int, end: int) -> Iterator[list[Row]]:
        """Read the rows between two earlier offsets again, without moving on."""
        other = Follower(self.path, forget=lambda: None)
        other.offset = start
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            yield from other._read(file.fileno(), end, exactly=True)

    def restart(self) -> None:
        """Read all of it again from the next call on."""
        self.behind = max(1, self.offset)
        self.offset = self.damaged = 0
        self._skipping = False
        self._known = None

    def _read(self, file: int, end: int, exactly: bool = False) -> Iterator[list[Row]]:
        while self.offset < end:
            size = min(CHUNK, end - self.offset) if exactly else CHUNK
            chunk = os.pread(file, size, self.offset)
            whole = chunk.rfind(b"\n") + 1
            if not whole:
                if len(chunk) < CHUNK:
                    return  # the last line, still being written
                self._skipping = True
                self.offset += len(chunk)
                continue
            self.batch_start = self.offset
            self.offset += whole
            yield self._parse(chunk[:whole])

    def _parse(self, text: bytes) -> list[Row]:
        lines = text.split(b"\n")[:-1]
        if self._skipping:
            self._skipping = False
            self.damaged += 1
            lines = lines[1:]
        found = []
        for line in lines:
            row = parse_object(line)
            if row is not None:
                found.append(row)
            elif line.strip():
                self.damaged += 1
        return found


def _line_start(file: int, near: int) -> int:
    """Start of the first whole line after an offset."""
    return near + os.pread(file, CHUNK, near).find(b"\n") + 1 if near > 0 else 0


def parse_object(text: bytes) -> Row | None:
    """One JSON object, None where the text is anything else."""
    try:
        line = text.decode().strip(" \t\r\n")
        value, end = _scan(line, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return value if end == len(line) and isinstance(value, dict) else None


def read_object(path: Path) -> Row:
    """A small JSON file; an empty object where it is not there or not whole."""
    try:
        return parse_object(path.read_bytes()) or {}
    except OSError:
        return {}


def number(value: Any) -> float | None:
    """A finite number of a row; None for text, booleans, nan, inf and missing values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if abs(found) != float("inf") and found == found else None


def is_broken(value: Any) -> bool:
    """Whether a value of a row was not finite, as text or in Python's JSON."""
    if isinstance(value, float):
        return value != value or abs(value) == float("inf")
    return value in ("nan", "inf", "-inf")


def whole(value: Any) -> int | None:
    """A value of a row as int; None where it is none."""
    found = number(value)
    return None if found is None else int(found)
