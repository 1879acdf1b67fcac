"""Files of torch.save, read without running code in them and with every checksum compared.

torch itself compares none: a flipped bit would become a weight without a word.
"""

import re
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from workloads.errors import UserError

Say = Callable[[str], None]
StandIn = tuple[type, str]  # a class, and the full name in a file that it takes the place of

_CHUNK = 8 << 20
_SECONDS = 10  # between two lines about a large file
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")


def silent(text: str) -> None:
    """Say nothing."""


def read_torch_file(file: Path, say: Say = silent, stand_ins: Sequence[StandIn] = ()) -> Any:
    """The content of a file of torch.save, tensors on the host.

    They are mapped from the file where its form allows it: what is not used takes no memory, and
    the file must stay as it is meanwhile. say: is told how far the checksums of a large file are,
    and of a file without any. Raises UserError for a file that is missing or damaged, or names code
    other than that of `stand_ins`.
    """
    if not file.is_file():
        raise UserError(f"expected {file}, found none; copy the whole folder")
    is_archive = _compare_checksums(file, say)
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    # A damaged file raises one of many kinds, by where the damage lies.
    except Exception as error:
        if code := _FORBIDDEN.search(str(error)):
            raise UserError(
                f"{file}: expected weights and plain values, found {code[1]} in it, which could "
                "run code; nothing was run: save its weights alone"
            ) from None
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: expected a file of torch.save, found one that cannot be read ({cause}); copy "
            "it again"
        ) from None
    if not is_archive:
        say(f"{file}: its old form has no checksums: a damaged value in it goes unnoticed")
    return loaded


def _compare_checksums(file: Path, say: Say) -> bool:
    """Whether the file is an archive, whose records' checksums are compared.

    Raises UserError for a record whose bytes are not those that were written.
    """
    record = None
    try:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            records = [item for item in archive.infolist() if item.file_size]
            # torch.serialization.set_crc32_options(False) writes 0 for all of them.
            known = [item for item in records if item.CRC]
            if len(known) < len(records):
                say(f"{file}: written without checksums: a damaged value in it goes unnoticed")
            size = sum(item.file_size for item in known)
            done, told = 0, time.monotonic()
            for record in known:
                with archive.open(record) as stream:
                    while chunk := stream.read(_CHUNK):
                        done += len(chunk)
                        if time.monotonic() - told > _SECONDS:
                            told = time.monotonic()
                            say(f"{file}: compared {done / 1e9:.1f} of {size / 1e9:.1f} GB")
        return True
    # As above: of one of many kinds.
    except Exception as error:
        where = f"record {record.filename}" if record else "its list of records"
        raise UserError(
            f"{file}: expected {where} as it was written, found it damaged ({error}); copy the "
            "file again"
        ) from None
