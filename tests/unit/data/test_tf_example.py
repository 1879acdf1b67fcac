"""tf.train.Example on the wire, against bytes put together by hand from the protobuf rules."""

import struct

import numpy as np
import pytest

from workloads.data.tf_example import ExampleError, build, parse

pytestmark = pytest.mark.unit


def tagged(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def entry(name: str, feature: bytes) -> bytes:
    return tagged(1, tagged(1, name.encode()) + tagged(2, feature))


def example(*entries: bytes) -> bytes:
    return tagged(1, b"".join(entries))


def test_packed_and_unpacked_numbers_are_the_same() -> None:
    floats = [1.5, -2.25, 3.0]
    packed = tagged(2, tagged(1, struct.pack("<3f", *floats)))
    single = tagged(2, b"".join(b"\x0d" + struct.pack("<f", value) for value in floats))
    mixed = tagged(2, b"\x0d" + struct.pack("<f", 1.5) + tagged(1, struct.pack("<2f", -2.25, 3)))
    found = parse(example(entry("a", packed), entry("b", single), entry("c", mixed)))
    for name in "abc":
        assert found[name].kind == "float" and found[name].values.dtype == np.float32
        assert found[name].values.tolist() == floats


def test_integers() -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    packed = tagged(3, tagged(1, b"\x00\x7f\x80\x01" + minus_one))
    single = tagged(3, b"\x08\x00" + b"\x08\x7f" + b"\x08\x80\x01" + b"\x08" + minus_one)
    small = tagged(3, tagged(1, b"\x01\x00\x01"))
    found = parse(example(entry("p", packed), entry("s", single), entry("f", small)))
    assert found["p"].values.tolist() == found["s"].values.tolist() == [0, 127, 128, -1]
    assert found["f"].values.tolist() == [1, 0, 1] and found["f"].values.dtype == np.int64


def test_unknown_fields_are_skipped() -> None:
    odd = b"\x18\x05" + b"\x29" + bytes(8) + b"\x35" + bytes(4) + tagged(9, b"later")
    feature = tagged(1, tagged(1, b"text") + odd)
    record = odd + example(tagged(1, tagged(1, b"k") + tagged(2, feature + odd) + odd)) + odd
    assert parse(record)["k"].values == (b"text",)


def test_later_entries_win_and_sections_merge() -> None:
    one, two = tagged(1, tagged(1, b"one")), tagged(1, tagged(1, b"two"))
    record = example(entry("a", one), entry("a", two)) + example(entry("b", one))
    found = parse(record)
    assert found["a"].values == (b"two",) and found["b"].values == (b"one",)
    switched = tagged(2, tagged(1, struct.pack("<f", 1))) + one
    assert parse(example(entry("a", switched)))["a"].kind == "bytes"
    assert parse(example(entry("a", one + two)))["a"].values == (b"one", b"two")


def test_empty_things() -> None:
    assert parse(b"") == {}
    found = parse(example(entry("none", b""), entry("floats", tagged(2, b""))))
    assert found["none"].kind == "" and len(found["none"].values) == 0
    assert found["floats"].kind == "float" and len(found["floats"].values) == 0


@pytest.mark.parametrize(
    "record",
    [
        b"\x0a\x05abc",  # promises more than there is
        b"\x0b",  # a group
        b"\x0a",  # no length
        b"\x80" * 11,
        example(entry("a", tagged(2, tagged(1, b"abc")))),  # three bytes of a float
        example(tagged(1, tagged(1, b"\xff\xfe") + tagged(2, b""))),
        b"\x00\x00",  # field number 0
    ],
)
def test_broken_bytes_are_no_example(record: bytes) -> None:
    with pytest.raises(ExampleError):
        parse(record)


def test_every_truncation_is_either_refused_or_shorter() -> None:
    record = build({"a": np.arange(4.0), "b": b"bytes", "c": np.array([1, -2, 300])})
    whole = set(parse(record))
    for size in range(1, len(record)):
        try:
            assert set(parse(record[:size])) < whole
        except ExampleError:
            continue


def test_round_trip() -> None:
    features = {
        "text": "文字",
        "many": [b"a", b"", b"ccc"],
        "floats": np.linspace(-1, 1, 300, dtype=np.float32),
        "whole": np.array([0, -1, 2**62, -(2**63), 127, 128]),
    }
    found = parse(build(features))
    assert found["text"].values == ("文字".encode(),)
    assert found["many"].values == (b"a", b"", b"ccc")
    assert np.array_equal(found["floats"].values, features["floats"])
    assert np.array_equal(found["whole"].values, features["whole"])
