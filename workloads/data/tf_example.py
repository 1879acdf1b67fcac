"""tf.train.Example on the wire, read and written without protobuf.

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }
    Feature  { oneof { BytesList = 1; FloatList = 2; Int64List = 3; } }
    …List    { repeated value = 1; }

Lists of numbers come packed or one by one, unknown fields are skipped, and of two entries with one
name the later counts, as protobuf has it.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "float", 3: "int64"}
_LONGEST_VARINT = 10  # bytes of 64 bits, seven at a time
# DataType of tensor.proto, those whose content is an array of numbers.
_TENSOR_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?",
                 17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8"}  # fmt: skip
# The field of TensorProto that lists the values of a type, where they are not in its content.
_TENSOR_LISTS = {1: 5, 2: 6, 3: 7, 4: 7, 5: 7, 6: 7, 9: 10, 10: 11, 17: 7}


class ExampleError(ValueError):
    """The bytes are not a tf.train.Example."""


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


def tensor(serialised: bytes) -> np.ndarray:
    """The array of a TensorProto, of its own shape, as tf.io.serialize_tensor writes it.

    Raises ExampleError.
    """
    kind, sizes, content = 0, [], None
    listed: list[_Field] = []
    fields = list(_fields(serialised, 0, len(serialised)))
    for field in fields:
        if field.number == 1 and field.wire == _VARINT:
            kind = field.start
        elif field.number == 2 and field.wire == _LENGTH:
            sizes = _tensor_shape(serialised, field)
        elif field.number == 4 and field.wire == _LENGTH:
            content = serialised[field.start : field.stop]
    if kind not in _TENSOR_TYPES:
        raise ExampleError(f"a tensor of type {kind}, which holds no numbers")
    dtype, count = np.dtype(_TENSOR_TYPES[kind]), math.prod(sizes)
    listed = [field for field in fields if field.number == _TENSOR_LISTS.get(kind)]
    if content is not None and len(content) == count * dtype.itemsize:
        return np.frombuffer(content, dtype).reshape(sizes)
    if content is not None or not listed:
        raise ExampleError(f"a tensor of {sizes} without its {count} values of {dtype}")
    if kind == 1:
        values = _floats(serialised, listed)
    elif kind == 2:
        pieces = [np.frombuffer(serialised[f.start : f.stop], "<f8") for f in listed]
        values = np.concatenate(pieces)
    else:
        values = _integers(serialised, listed)
    # One value stands for all, as protobuf writes a constant.
    if len(values) not in (1, count):
        raise ExampleError(f"a tensor of {sizes} with {len(values)} values")
    return (
        np.broadcast_to(values, count).reshape(sizes) if len(values) == 1 else values.reshape(sizes)
    )


def _tensor_shape(serialised: bytes, shape: _Field) -> list[int]:
    sizes = []
    for dimension in _fields(serialised, shape.start, shape.stop):
        if dimension.number == 2 and dimension.wire == _LENGTH:
            inner = _fields(serialised, dimension.start, dimension.stop)
            sizes.append(next((f.start for f in inner if f.number == 1), 0))
    return sizes


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
    """Varints one after the other: seven bits an octet, the lowest first, the last below 128."""
    octets = np.frombuffer(record, np.uint8, stop - start, start)
    last = np.flatnonzero(octets < 0x80)
    if len(last) == len(octets):  # flags and small counts: one octet each
        return octets.astype(np.int64)
    if octets[-1] >= 0x80:
        raise ExampleError(f"an integer that does not end at byte {stop}")
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > _LONGEST_VARINT:
        raise ExampleError(f"an integer of {sizes.max()} bytes at byte {start}")
    place = np.arange(len(octets)) - np.repeat(first, sizes)
    bits = (octets & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(bits, first).view(np.int64)


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
