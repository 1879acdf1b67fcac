"""TFRecord framing: the sound is read, the broken named, everything behind it kept."""

import gzip
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from workloads.data import tfrecord
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

pytestmark = pytest.mark.unit

RECORDS = [bytes([number]) * (5 + 37 * number) for number in range(30)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.tfrecord"
    assert tfrecord.write(path, RECORDS) == len(RECORDS)
    return path


def offset_of(record: int) -> int:
    return sum(len(payload) + 16 for payload in RECORDS[:record])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def reading(path: Path) -> tuple[list[bytes], list[Damage]]:
    damage: list[Damage] = []
    return list(tfrecord.read(path, damage)), damage


def test_checksum_is_the_one_of_the_format() -> None:
    # CRC32C of nine digits is the polynomial's published check value.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc(b"123456789") == masked


def test_round_trip(file: Path) -> None:
    assert list(tfrecord.read(file)) == RECORDS
    index = tfrecord.index(file)
    assert len(index) == len(RECORDS) and index.damage == ()
    assert [index[i] for i in (29, 0, 7)] == [RECORDS[29], RECORDS[0], RECORDS[7]]
    assert index.offsets.tolist() == [offset_of(i) for i in range(30)]


@pytest.mark.parametrize(
    ("within", "trouble"),
    [
        (0, "bad_length_crc"),  # the length itself: the next record is found by its checksums
        (7, "bad_length_crc"),  # a length of 2^58
        (9, "bad_length_crc"),
        (14, "bad_payload_crc"),
        (-1, "bad_payload_crc"),
    ],
)
def test_one_flipped_bit_costs_one_record(file: Path, within: int, trouble: str) -> None:
    record = 12
    start = offset_of(record) if within >= 0 else offset_of(record + 1)
    flip(file, start + within)
    records, damage = reading(file)
    assert records == [*RECORDS[:record], *RECORDS[record + 1 :]]
    (found,) = damage
    assert (found.file, found.record, found.offset) == (str(file), record, offset_of(record))
    assert found.trouble == trouble


def test_damage_unpacks_into_file_record_offset_cause_and_weight(file: Path) -> None:
    flip(file, offset_of(3) + 12)
    _, [(name, record, offset, cause, lost)] = reading(file)
    assert (name, record, offset, lost) == (str(file), 3, offset_of(3), 1)
    assert cause.startswith("bad_payload_crc: payload checksum error")


def test_many_damaged_places_are_all_found(file: Path) -> None:
    for record in (2, 3, 11, 29):
        flip(file, offset_of(record) + 13)
    flip(file, offset_of(20))
    records, damage = reading(file)
    assert [item.record for item in damage] == [2, 3, 11, 20, 29]
    assert len(records) == 25


@pytest.mark.parametrize("kept", [1, 11, 12, 15, 60])
def test_truncated(file: Path, kept: int) -> None:
    with open(file, "r+b") as handle:
        handle.truncate(offset_of(20) + kept)
    records, damage = reading(file)
    assert records == RECORDS[:20]
    assert [(item.record, item.trouble) for item in damage] == [(20, "truncated")]


def test_a_writer_that_died_and_went_on_loses_one_record(tmp_path: Path) -> None:
    for cut in (5, 14, 150):
        first, path = tmp_path / "first", tmp_path / f"{cut}.tfrecord"
        tfrecord.write(first, [b"a" * 100, b"b" * 300])
        died = first.read_bytes()[: 116 + cut]
        tfrecord.write(first, [b"c" * 40, b"d" * 400, b"e"])
        path.write_bytes(died + first.read_bytes())
        records, damage = reading(path)
        assert records == [b"a" * 100, b"c" * 40, b"d" * 400, b"e"], cut
        assert [item.record for item in damage] == [1]


def test_recovery_across_the_search_window(tmp_path: Path) -> None:
    path = tmp_path / "big.tfrecord"
    noise = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8).tobytes()
    tfrecord.write(path, [b"first", noise, b"last"])
    flip(path, 16 + 5 + 2)  # the length of the big record
    records, damage = reading(path)
    assert records == [b"first", b"last"]
    assert [item.trouble for item in damage] == ["bad_length_crc"]


def test_empty_file_and_empty_records(tmp_path: Path) -> None:
    path = tmp_path / "empty.tfrecord"
    path.touch()
    assert reading(path) == ([], [Damage(str(path), 0, 0, "empty: empty file")])
    tfrecord.write(path, [b"", b"x", b""])
    assert reading(path) == ([b"", b"x", b""], [])


def test_no_record_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text.tfrecord"
    path.write_text("this is no TFRecord file at all, but long enough for a header")
    records, damage = reading(path)
    assert records == [] and len(damage) == 1


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_a_compressed_file_is_named_as_one(file: Path, compress: Callable[[bytes], bytes]) -> None:
    file.write_bytes(compress(file.read_bytes()))
    records, damage = reading(file)
    assert records == [] and [item.trouble for item in damage] == ["bad_file"]
    assert damage[0].cause.startswith("bad_file: compressed with ")


def test_a_damaged_length_that_looks_compressed_is_damage_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.tfrecord"
    tfrecord.write(path, [bytes(0x9C78), b"next"])
    flip(path, 9)
    records, damage = reading(path)
    assert [len(record) for record in records] == [4]
    assert [item.trouble for item in damage] == ["bad_length_crc"]


def test_missing_file_is_said_before_reading(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a TFRecord file, found none"):
        tfrecord.read(tmp_path / "none.tfrecord")


def test_damage_is_logged_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "bad.tfrecord"
    payloads = [bytes([i]) * 50 for i in range(40)]
    tfrecord.write(path, payloads)
    for record in range(10):
        flip(path, record * 66 + 20)
    with caplog.at_level(logging.WARNING):
        assert list(tfrecord.read(path)) == payloads[10:]
    assert "record 3 at byte 198: bad_payload_crc" in caplog.text
    flip(path, 30 * 66 + 20)
    with pytest.raises(UserError, match="at most 10 damaged records, found 11 of 40"):
        list(tfrecord.read(path))


def test_budget() -> None:
    damage = [Damage("f", record, 0, "empty: x") for record in range(30)]
    tfrecord.check_budget(damage, 30_000, None)
    with pytest.raises(UserError, match="at most 29 damaged records, found 30 of 29999"):
        tfrecord.check_budget(damage, 29_999, None)
    tfrecord.check_budget(damage, 30, float("inf"))
    with pytest.raises(UserError, match="at most 0 damaged"):
        tfrecord.check_budget(damage[:1], 30, 0)


def test_reading_at_a_place_checks_again(file: Path) -> None:
    index = tfrecord.index(file)
    flip(file, offset_of(5) + 20)
    assert index[4] == RECORDS[4]
    with pytest.raises(DamagedRecord, match="payload checksum error") as caught:
        _ = index[5]
    assert caught.value.damage[:3] == (str(file), 5, offset_of(5))
    file.unlink()
    with pytest.raises(DamagedRecord, match="missing_file"):
        _ = index[4]


def test_index_is_kept_while_the_file_stays_the_same(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    flip(file, offset_of(5) + 20)
    first = tfrecord.index(file, cache)
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = tfrecord.index(file, cache)
    assert kept.stat().st_mtime_ns == stamp
    assert again.offsets.tolist() == first.offsets.tolist() and again.damage == first.damage
    flip(file, offset_of(5) + 20)
    os.utime(file, ns=(1, 1))
    assert tfrecord.index(file, cache).damage == ()
    kept.write_bytes(b"broken")
    os.utime(file, ns=(2, 2))
    assert len(tfrecord.index(file, cache)) == 30


def test_a_broken_index_is_built_anew(file: Path, tmp_path: Path) -> None:
    tfrecord.index(file, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert len(tfrecord.index(file, tmp_path / "cache")) == 30


def test_nothing_is_written_without_a_cache_folder(file: Path) -> None:
    before = sorted(file.parent.iterdir())
    tfrecord.index(file)
    assert sorted(file.parent.iterdir()) == before


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def payloads() -> Iterator[bytes]:
        yield b"one"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tfrecord.write(tmp_path / "half.tfrecord", payloads())
    assert not (tmp_path / "half.tfrecord").exists()


def test_framing_is_little_endian(tmp_path: Path) -> None:
    tfrecord.write(tmp_path / "one", [b"abc"])
    data = (tmp_path / "one").read_bytes()
    assert data[:8] == struct.pack("<Q", 3) and data[12:15] == b"abc" and len(data) == 19


def test_damage_that_differs_in_numbers_alone_is_one_line() -> None:
    alike = [Damage(f"e{n}/x.tfrecord", n, 7 * n, f"bad_image: i{n}.png") for n in range(1200)]
    other = Damage("e0/x.tfrecord", 3, None, "empty: empty file")
    long, short = tfrecord.summed_up([*alike[:2], other, *alike[2:]])
    assert long == f"1,200 like these in 1,200 files: {'; '.join(map(str, alike[:3]))}"
    assert short == str(other)
    assert tfrecord.summed_up(alike[:3]) == [str(item) for item in alike[:3]]
