"""tf.train.Example on the wire, read and written without protobuf.

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }
    Feature  { oneof { BytesList = 1; FloatList = 2; Int64List = 3; } }
    …List    { repeated value = 1; }

Lists of numbers come packed or one by one, unknown fields are skipped, and of two entries with one
name the later counts, as protobuf has it.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "float", 3: "int64"}


class ExampleError(ValueError):
    """The bytes are no tf.train.Example."""


class Feature(NamedTuple):
    """One feature: kind "bytes", "float", "int64" or "" (none set), and its values.

    Values are a tuple of bytes objects, or float32 or int64 [n].
    """

    kind: str
    values: tuple[bytes, ...] | np.ndarray


class _Field(NamedTuple):
    number: int
    wire: int
    start: int  # of the content; for a varint the value itself
    stop: int


def parse(record: bytes) -> dict[str, Feature]:
    """The features of a serialised Example by name; raises ExampleError."""
    features: dict[str, Feature] = {}
    for outer in _fields(record, 0, len(record)):
        if outer.number != 1 or outer.wire != _LENGTH:
            continue
        for entry in _fields(record, outer.start, outer.stop):
            if entry.number == 1 and entry.wire == _LENGTH:
                name, feature = _entry(record, entry)
                features[name] = feature
    return features


def _entry(record: bytes, entry: _Field) -> tuple[str, Feature]:
    name, feature = "", Feature("", ())
    for field in _fields(record, entry.start, entry.stop):
        if field.wire != _LENGTH:
            continue
        if field.number == 1:
            name = _text(record[field.start : field.stop])
        elif field.number == 2:
            feature = _feature(record, field)
    return name, feature


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExampleError(f"a feature's name is not UTF-8: {error}") from error


def _feature(record: bytes, field: _Field) -> Feature:
    kind = 0
    parts: list[_Field] = []
    for part in _fields(record, field.start, field.stop):
        if part.number not in _KINDS or part.wire != _LENGTH:
            continue
        # The last kind set wins; one kind in several pieces is merged.
        parts = [*parts, part] if part.number == kind else [part]
        kind = part.number
    inner = [f for part in parts for f in _fields(record, part.start, part.stop) if f.number == 1]
    if kind == 1:
        return Feature("bytes", tuple(record[f.start : f.stop] for f in inner if f.wire == _LENGTH))
    if kind == 2:
        return Feature("float", _floats(record, inner))
    if kind == 3:
        return Feature("int64", _integers(record, inner))
    return Feature("", ())


def _floats(record: bytes, fields: list[_Field]) -> np.ndarray:
    pieces = []
    for field in fields:
        if field.wire not in (_LENGTH, _FIXED32):
            raise ExampleError(f"a float of wire type {field.wire}")
        count, rest = divmod(field.stop - field.start, 4)
        if rest:
            raise ExampleError(f"packed floats of {field.stop - field.start} bytes")
        pieces.append(np.frombuffer(record, "<f4", count, field.start))
    return _joined(pieces, np.float32)


def _integers(record: bytes, fields: list[_Field]) -> np.ndarray:
    pieces = []
    for field in fields:
        if field.wire == _VARINT:
            pieces.append(np.array([_signed(field.start)], np.int64))
        elif field.wire == _LENGTH:
            pieces.append(_packed_integers(record, field.start, field.stop))
        else:
            raise ExampleError(f"an integer of wire type {field.wire}")
    return _joined(pieces, np.int64)


def _joined(pieces: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0].astype(dtype, copy=False)
    return np.concatenate(pieces).astype(dtype) if pieces else np.empty(0, dtype)


def _packed_integers(record: bytes, start: int, stop: int) -> np.ndarray:
    octets = np.frombuffer(record, np.uint8, stop - start, start)
    if (octets < 0x80).all():  # flags and small counts: one byte each
        return octets.astype(np.int64)
    values = []
    while start < stop:
        value, start = _varint(record, start, stop)
        values.append(_signed(value))
    return np.array(values, np.int64)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(record: bytes, start: int, stop: int) -> Iterator[_Field]:
    while start < stop:
        tag, start = _varint(record, start, stop)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ExampleError(f"field number 0 at byte {start}")
        if wire == _VARINT:
            value, start = _varint(record, start, stop)
            yield _Field(number, wire, value, value)
            continue
        if wire == _LENGTH:
            size, start = _varint(record, start, stop)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ExampleError(f"wire type {wire} at byte {start}")
        if start + size > stop:
            raise ExampleError(f"a field of {size} bytes at byte {start} of {stop}")
        yield _Field(number, wire, start, start + size)
        start += size


def _varint(record: bytes, start: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while start < stop and shift < 70:
        octet = record[start]
        start += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, start
        shift += 7
    raise ExampleError(f"an integer that does not end at byte {start}")


Value = bytes | str | Sequence[bytes] | Sequence[str] | np.ndarray


def build(features: Mapping[str, Value]) -> bytes:
    """Serialise features, sorted by name: text and bytes, float arrays, integer arrays."""
    entries = []
    for name, value in sorted(features.items()):
        entry = _tagged(1, name.encode()) + _tagged(2, _build_feature(value))
        entries.append(_tagged(1, entry))
    return _tagged(1, b"".join(entries))


def _build_feature(value: Value) -> bytes:
    if isinstance(value, np.ndarray):
        flat = value.ravel()
        if flat.dtype.kind == "f":
            return _tagged(2, _tagged(1, flat.astype("<f4").tobytes()))
        packed = b"".join(_build_varint(int(number) % (1 << 64)) for number in flat)
        return _tagged(3, _tagged(1, packed))
    items: list[bytes | str] = [value] if isinstance(value, bytes | str) else [*value]
    raw = [item.encode() if isinstance(item, str) else item for item in items]
    return _tagged(1, b"".join(_tagged(1, item) for item in raw))


def _tagged(number: int, content: bytes) -> bytes:
    return struct.pack("B", number << 3 | _LENGTH) + _build_varint(len(content)) + content


def _build_varint(value: int) -> bytes:
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
