"""TFRecord files without TensorFlow: checksums, recovery after damage, random access, writing.

A record is framed as: length (uint64, little endian), its masked CRC32C (uint32), the payload, the
payload's masked CRC32C. Where a frame is damaged, everything behind it is still read: at the next
frame when the length can be trusted, else at the next place where both checksums agree.
"""

import logging
import mmap
import os
import re
import shlex
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workloads import missing_files
from workloads.data.file_index import Arrays, load_or_build
from workloads.errors import UserError

log = logging.getLogger(__name__)

HEADER_BYTES = 12
FOOTER_BYTES = 4
DAMAGE_SHARE = 0.001
DAMAGE_ALWAYS_ALLOWED = 10

_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
_RESYNC_WINDOW = 1 << 20
# How gzip's and zlib's streams begin; TFRecord files may be written as one.
_COMPRESSED = (b"\x1f\x8b\x08", b"\x78\x01", b"\x78\x9c", b"\x78\xda")
_PEEK_BYTES = 4096
_GZIP_OR_ZLIB = 47  # zlib's own number for "whichever header it has"
_INDEX_VERSION = "tfrecord-1"
_NUMBER = re.compile(r"\d+")


class Damage(NamedTuple):
    """One thing wrong: file, record number in it, byte offset (None without one), cause.

    A cause begins with its class and a colon: truncated, bad_length_crc, bad_payload_crc, empty,
    bad_example, missing_feature, wrong_dim, non_finite, bad_utf8, bad_image, bad_file,
    missing_file. `lost`: number of records (steps of robot data) lost by it; for a missing file all
    of its own.
    """

    file: str
    record: int
    offset: int | None
    cause: str
    lost: int = 1

    @property
    def trouble(self) -> str:
        """The class of the cause, for counting."""
        return self.cause.partition(":")[0]

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.file}: record {self.record}{place}: {self.cause}"


_ALIKE_SHOWN = 3


def summed_up(damage: Iterable[Damage]) -> list[str]:
    """Damage as lines: much that differs in its numbers alone is one line, with its count."""
    kinds: dict[tuple[str, str], list[Damage]] = {}
    for item in damage:
        kind = _NUMBER.sub("#", item.file), _NUMBER.sub("#", item.cause)
        kinds.setdefault(kind, []).append(item)
    lines = []
    for alike in kinds.values():
        shown = [str(item) for item in alike[:_ALIKE_SHOWN]]
        if len(alike) > _ALIKE_SHOWN:
            files = len({item.file for item in alike})
            place = f"in {files:,} files" if files > 1 else "in one file"
            shown = [f"{len(alike):,} like these {place}: {'; '.join(shown)}"]
        lines += shown
    return lines


class DamagedRecord(UserError):
    """A record that was asked for cannot be read; `.damage` says which and why."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(
            f"expected a sound record, found {damage}; leave it out or record it again"
        )
        self.damage = damage


class Frame(NamedTuple):
    """A sound record: its number in the file, the frame's byte offset, the payload."""

    record: int
    offset: int
    payload: bytes


@dataclass(frozen=True)
class Index:
    """Where the sound records of a file lie, and what is wrong with the others."""

    path: Path
    records: np.ndarray  # int64 [n], number in the file, damaged ones counted
    offsets: np.ndarray  # int64 [n], byte offset of the frame
    lengths: np.ndarray  # int64 [n], bytes of payload
    damage: tuple[Damage, ...]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, item: int) -> bytes:
        """The payload of the item-th sound record, checked against its checksum."""
        return read_at(
            self.path, int(self.offsets[item]), int(self.lengths[item]), int(self.records[item])
        )


def read(path: str | os.PathLike[str], damage: list[Damage] | None = None) -> Iterator[bytes]:
    """Yield the payloads of all sound records, in order; damaged ones are skipped.

    What was skipped is appended to `damage` where a list is given. Without one each is logged, and
    UserError is raised past the budget of max(10, 0.1 %) damaged records.
    """
    if not Path(path).is_file():
        raise UserError(f"expected a TFRecord file, found none at {path}; check the path")
    return _read(path, damage)


def _read(path: str | os.PathLike[str], damage: list[Damage] | None) -> Iterator[bytes]:
    found: list[Damage] = [] if damage is None else damage
    seen = 0
    for item in scan(path):
        seen += 1
        if isinstance(item, Frame):
            yield item.payload
            continue
        found.append(item)
        if damage is None:
            log.warning("skipped %s", item)
    if damage is None:
        check_budget(found, seen, None)


def check_budget(damage: list[Damage], seen: int, budget: float | None) -> None:
    """Raise UserError where more records are lost than `budget`, by default max(10, 0.1 %).

    seen: all records, the lost ones among them.
    """
    allowed = max(DAMAGE_ALWAYS_ALLOWED, DAMAGE_SHARE * seen) if budget is None else budget
    lost = sum(item.lost for item in damage)
    if lost <= allowed:
        return
    first = "; ".join(str(item) for item in damage[:3])
    raise UserError(
        f"expected at most {int(allowed)} damaged records, found {lost} of {seen}, "
        f"first: {first}; run data inspect, then fix or remove the files, or allow more"
    )


def scan(path: str | os.PathLike[str]) -> Iterator[Frame | Damage]:
    """Yield every record in order, as a Frame if sound and as a Damage if not.

    Raises UserError for a file that may not be read: that is no damage, and chmod fixes it.
    """
    name = os.fspath(path)
    if not os.access(name, os.R_OK):
        raise UserError(f"expected a file that may be read, found {name}; check its permissions")
    size = os.path.getsize(name)
    if size == 0:
        yield Damage(name, 0, 0, "empty: empty file")
        return
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if _checked_length(data, 0) is None:
            problem = _other_file(name, data[:_PEEK_BYTES])
            if problem is not None:
                yield Damage(name, 0, 0, f"bad_file: {problem}")
                return
        position: int | None = 0
        record = 0
        while position is not None and position < size:
            item, position = _frame(name, data, size, position, record)
            yield item
            record += 1


def _frame(
    name: str, data: mmap.mmap, size: int, start: int, record: int
) -> tuple[Frame | Damage, int | None]:
    """The record at `start`, and where the next one begins (None where there is none)."""
    length = _checked_length(data, start)
    end = None if length is None else start + HEADER_BYTES + length + FOOTER_BYTES
    if length is None or end is None or end > size:
        cause = _header_cause(data, size, start, length)
        return Damage(name, record, start, cause), _after_bad_header(data, size, start)
    payload = data[start + HEADER_BYTES : end - FOOTER_BYTES]
    (stored,) = struct.unpack_from("<I", data, end - FOOTER_BYTES)
    computed = masked_crc(payload)
    if computed == stored:
        return Frame(record, start, payload), end
    cause = f"bad_payload_crc: payload checksum error, stored {stored:08x}, computed {computed:08x}"
    # A writer died here and appended later: the length reaches into the next records.
    trusted = end == size or _checked_length(data, end) is not None
    following = end if trusted else _next_frame(data, size, start + HEADER_BYTES)
    return Damage(name, record, start, cause), following


def _header_cause(data: mmap.mmap, size: int, start: int, length: int | None) -> str:
    if length is not None:
        found = size - start - HEADER_BYTES
        return f"truncated: truncated file, {length + FOOTER_BYTES} bytes expected, {found} found"
    if size - start < HEADER_BYTES:
        return f"truncated: truncated file, {HEADER_BYTES} bytes expected, {size - start} found"
    return "bad_length_crc: length checksum error"


def _after_bad_header(data: mmap.mmap, size: int, start: int) -> int | None:
    """Where to resume after a header that is damaged or longer than the file."""
    if size - start >= HEADER_BYTES:
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + HEADER_BYTES + length + FOOTER_BYTES
        # Only the checksum of the length may be damaged: then the payload's own one agrees.
        if end <= size and _payload_agrees(data, start, length):
            return end
    return _next_frame(data, size, start + 1)


def _other_file(name: str, start: bytes) -> str | None:
    """The real format of a file that is no TFRecord, and what to do; None where unknown."""
    if missing_files.is_pointer(name):
        return missing_files.WHAT_TO_DO
    if not start.startswith(_COMPRESSED):
        return None
    try:  # a damaged length may look like the start of a stream
        if not zlib.decompressobj(_GZIP_OR_ZLIB).decompress(start):
            return None
    except zlib.error:
        return None
    # gunzip takes files named .gz only.
    if start.startswith(_COMPRESSED[0]):
        quoted = shlex.quote(name)
        return f"compressed with gzip; unpack it: mv {quoted} {quoted}.gz && gunzip {quoted}.gz"
    return "compressed with zlib; write it again without compression (TFRecordOptions)"


def _checked_length(data: mmap.mmap, start: int) -> int | None:
    header = data[start : start + HEADER_BYTES]
    if len(header) < HEADER_BYTES:
        return None
    length, stored = struct.unpack("<QI", header)
    return length if masked_crc(header[:8]) == stored else None


def _payload_agrees(data: mmap.mmap, start: int, length: int) -> bool:
    begin = start + HEADER_BYTES
    (stored,) = struct.unpack_from("<I", data, begin + length)
    return masked_crc(data[begin : begin + length]) == stored


def _next_frame(data: mmap.mmap, size: int, start: int) -> int | None:
    """The first place from `start` on where a whole frame with both checksums right begins."""
    for window in range(start, size - HEADER_BYTES, _RESYNC_WINDOW):
        chunk = data[window : window + _RESYNC_WINDOW + HEADER_BYTES - 1]
        for place in _header_candidates(chunk):
            begin = window + int(place)
            (length,) = struct.unpack_from("<Q", data, begin)
            fits = begin + HEADER_BYTES + length + FOOTER_BYTES <= size
            if fits and _payload_agrees(data, begin, length):
                return begin
    return None


def _header_candidates(chunk: bytes) -> np.ndarray:
    """Offsets at which eight bytes are followed by their own masked CRC32C, all at once."""
    octets = np.frombuffer(chunk, np.uint8)
    count = len(octets) - HEADER_BYTES + 1
    if count <= 0:
        return np.empty(0, np.int64)
    tables = _crc_tables()
    crc = np.zeros(count, np.uint32)
    for place in range(8):
        start_value = 0xFF if place < 4 else 0
        crc ^= tables[7 - place][octets[place : place + count] ^ np.uint8(start_value)]
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)
    stored = np.zeros(count, np.uint32)
    for place in range(4):
        octet = octets[8 + place : 8 + place + count].astype(np.uint32)
        stored |= octet << np.uint32(8 * place)
    return np.flatnonzero(masked == stored)


@cache
def _crc_tables() -> np.ndarray:
    """uint32 [8, 256]: what a byte does to the checksum with 0 to 7 bytes behind it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> 1)
    tables = [table.astype(np.uint32)]
    for _ in range(7):
        last = tables[-1]
        tables.append((last >> np.uint32(8)) ^ tables[0][last & np.uint32(0xFF)])
    return np.stack(tables)


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as the format requires."""
    # Imported here: `Damage` alone does not need the package.
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_at(path: str | os.PathLike[str], offset: int, length: int, record: int = 0) -> bytes:
    """The payload of the frame at byte `offset`, checked; raises DamagedRecord.

    The file is opened for each call: no descriptor is kept, so any number of files and of worker
    processes is fine, and it costs a fiftieth of decoding the image inside.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            file.seek(offset + HEADER_BYTES)
            data = file.read(length + FOOTER_BYTES)
    except FileNotFoundError as error:
        cause = "missing_file: the file is gone"
        raise DamagedRecord(Damage(name, record, offset, cause)) from error
    if len(data) < length + FOOTER_BYTES:
        raise DamagedRecord(Damage(name, record, offset, "truncated: truncated file"))
    payload = data[:length]
    if masked_crc(payload) != struct.unpack("<I", data[length:])[0]:
        cause = "bad_payload_crc: payload checksum error"
        raise DamagedRecord(Damage(name, record, offset, cause))
    return payload


def index(path: str | os.PathLike[str], cache_dir: Path | None = None) -> Index:
    """Scan a file once, checksums included; with `cache_dir` the result is kept there.

    A cached index is used while the file's path, size and modification time are the same.
    """
    file = Path(path)
    (arrays,) = load_or_build(file, [file], _INDEX_VERSION, cache_dir, _scan_to_arrays)
    damage = tuple(
        Damage(os.fspath(path), int(record), int(offset), str(cause))
        for record, offset, cause in zip(
            arrays["bad_records"], arrays["bad_offsets"], arrays["bad_causes"], strict=True
        )
    )
    return Index(Path(path), arrays["records"], arrays["offsets"], arrays["lengths"], damage)


def _scan_to_arrays(path: str | os.PathLike[str]) -> Arrays:
    good: list[tuple[int, int, int]] = []
    bad: list[Damage] = []
    for item in scan(path):
        if isinstance(item, Frame):
            good.append((item.record, item.offset, len(item.payload)))
        else:
            bad.append(item)
    table = np.array(good, np.int64).reshape(-1, 3)
    return {
        "records": table[:, 0],
        "offsets": table[:, 1],
        "lengths": table[:, 2],
        "bad_records": np.array([item.record for item in bad], np.int64),
        "bad_offsets": np.array([item.offset for item in bad], np.int64),
        "bad_causes": np.array([item.cause for item in bad], np.str_),
    }


def write(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Write payloads as one TFRecord file and return how many; the file appears when complete."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    count = 0
    with open(partial, "wb") as file:
        for payload in records:
            length = struct.pack("<Q", len(payload))
            file.write(length + struct.pack("<I", masked_crc(length)))
            file.write(payload + struct.pack("<I", masked_crc(payload)))
            count += 1
    os.replace(partial, target)
    return count
