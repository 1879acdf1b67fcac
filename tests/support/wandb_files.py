"""What an offline run of Weights & Biases holds, as `wandb sync` would send it.

A .wandb file is a log of LevelDB's form behind a header of seven bytes: blocks of 32 KiB, in which
records stand whole (type 1) or in a first, middle and last part (2, 3, 4). Each record is a message
of wandb's own protocol.
"""

from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER, _WHOLE, _LAST = 32 << 10, 7, 1, 4


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file, in order."""
    content, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
