"""The record files of an RLDS dataset: TFRecord, or array_record through its package."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workloads.data.robot.optional import imported
from workloads.data.tfrecord import Damage, DamagedRecord, Frame, read_at, scan
from workloads.errors import UserError
from workloads.json_files import read_json

TFRECORD, ARRAY_RECORD = "tfrecord", "array_record"
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<split>[^-]+)\.(?P<kind>tfrecord|array_record)"
    r"-(?P<number>\d+)-of-(?P<count>\d+)$"
)
_DEFAULT_SPLIT = "train"


def find_shards(path: Path, split: str | None) -> tuple[str, str, list[Path], list[str]]:
    """The dataset's name, the split, all its shards, missing ones included, and other splits.

    Raises UserError where the split has no shards.
    """
    matches = [m for m in (_SHARD.match(file.name) for file in sorted(path.iterdir())) if m]
    splits = sorted({match["split"] for match in matches})
    chosen = split or (_DEFAULT_SPLIT if _DEFAULT_SPLIT in splits else None)
    if chosen is None and len(splits) == 1:
        chosen = splits[0]
    mine = [match for match in matches if match["split"] == chosen]
    if not mine:
        named = [file.name for file in sorted(path.iterdir()) if "record" in file.name]
        other = f" (found {named[0]!r}, which is no shard's name)" if named and not matches else ""
        raise UserError(
            f"{path}: expected shards of split {chosen or 'train'}, found splits: "
            f"{', '.join(splits) or 'none'}{other}; name one with split, or download the shards"
        )
    first = mine[0]
    sets = {(match["stem"], match["kind"], match["count"]): match for match in mine}
    if len(sets) > 1:
        listed = " and ".join(match.string for match in sets.values())
        raise UserError(
            f"{path}: expected shards of one set, found {listed}; one of them is left from an "
            "earlier writing: remove its files"
        )
    stem, kind, count, digits = (
        first["stem"],
        first["kind"],
        int(first["count"]),
        len(first["count"]),
    )
    names = [
        f"{stem}-{chosen}.{kind}-{number:0{digits}d}-of-{count:0{digits}d}"
        for number in range(count)
    ]
    others = [name for name in splits if name != chosen]
    return stem, str(chosen), [path / name for name in names], others


def shard_lengths(path: Path, split: str, count: int) -> list[int] | None:
    """Episodes of each shard by dataset_info.json; None where it does not tell."""
    file = path / "dataset_info.json"
    if not file.is_file():
        return None
    for entry in read_json(file).get("splits") or ():
        lengths = entry.get("shardLengths") if isinstance(entry, dict) else None
        if lengths and entry.get("name") == split and len(lengths) == count:
            try:
                return [int(length) for length in lengths]
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{file}: expected numbers of episodes as shardLengths, found {lengths!r}; "
                    "copy the file again"
                ) from error
    return None


def records(path: Path) -> Iterator[Frame | Damage]:
    """Every record of a shard in order; the offset of an array_record's is its number."""
    if not _is_array_record(path):
        yield from scan(path)
        return
    reader = _reader(path)
    if not reader.ok():
        yield Damage(str(path), 0, None, "bad_file: not a readable array_record file")
        return
    for number in range(reader.num_records()):
        yield _frame(path, reader, number)


def record_at(path: Path, offset: int, length: int, record: int) -> bytes:
    """The payload of one record; raises DamagedRecord."""
    if not _is_array_record(path):
        return read_at(path, offset, length, record)
    found = _frame(path, _reader(path), record)
    if isinstance(found, Damage):
        raise DamagedRecord(found)
    return found.payload


def _is_array_record(path: Path) -> bool:
    match = _SHARD.match(path.name)
    return match is not None and match["kind"] == ARRAY_RECORD


def _reader(path: Path) -> Any:
    module = imported("array_record.python.array_record_module", "array-record", str(path))
    return module.ArrayRecordReader(str(path))


def _frame(path: Path, reader: Any, number: int) -> Frame | Damage:
    try:
        return Frame(number, number, bytes(reader.read([number])[0]))
    except Exception as error:
        cause = f"bad_payload_crc: unreadable record, {' '.join(str(error).split())}"
        return Damage(str(path), number, None, cause)
