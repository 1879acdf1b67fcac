"""Files of rows: finding, opening, and a digest of their bytes."""

import bz2
import codecs
import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from workloads.errors import UserError


def _open_zst(file: Path) -> BinaryIO:
    """Arrow reads all frames of a file and names a cut one; zstandard's reader does neither."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression="zstd"))


TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
TABLES = (".parquet", ".arrow")
PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
# Files that libraries and people write beside rows.
_COMPANIONS = ("readme", "license", "licence", "notice", "changelog", "citation")
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SHOWN = 5  # files that are named
_SPLIT = re.compile(r"(train|test|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)


def kind_of(file: Path) -> str | None:
    """The kind of rows in a file by its name, such as .jsonl for a.jsonl.gz; None for no rows."""
    suffix = file.suffix.lower()
    if suffix in PACKED:
        inner = Path(file.stem).suffix.lower()
        return inner if inner in TEXTS else None
    return suffix if suffix in TEXTS + TABLES else None


def kinds() -> str:
    """Known file name endings of rows, for messages."""
    return f"{', '.join(TEXTS + TABLES)} (texts also with {', '.join(PACKED)})"


def data_files(path: Path) -> list[Path]:
    """The files with rows of a file, a folder or a pattern such as data/*.jsonl, in their order.

    A folder that `datasets` has saved gives the files it lists. Raises UserError where there are
    none, and for a folder with several splits.
    """
    if is_pattern(path):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [file for match in found if not _is_hidden(match) for file in _of_match(match)]
        if not files:
            raise UserError(f"expected files of rows that match {path}, found none; correct it")
        return files
    if path.is_file():
        if kind_of(path) is None:
            raise UserError(f"expected a file ending in {kinds()}, found {path}; convert it")
        return [path]
    if not path.is_dir():
        raise UserError(f"expected a file or folder of rows, found nothing at {path}; correct it")
    files = [file for file in visible_files(path) if is_data(file)]
    if not files:
        raise UserError(f"expected files ending in {kinds()} in {path}, found none; add some")
    _refuse_splits(path, files)
    return files


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern and not the name of an existing file."""
    return glob.has_magic(str(path)) and not path.exists()


def is_data(file: Path) -> bool:
    """Whether a file holds rows, and not a library's or a person's notes about them."""
    if kind_of(file) is None or file.name in _METADATA:
        return False
    if file.suffix.lower() == ".txt" and file.stem.lower() in _COMPANIONS:
        return False
    listed = _listed_by_datasets(file.parent)
    return listed is None or file.name in listed


def left_out(path: Path) -> list[Path]:
    """The files of a folder that hold no readable rows; none for a file or a pattern."""
    if not path.is_dir():
        return []
    return [
        file
        for file in visible_files(path)
        if not is_data(file) and not (file.name in _METADATA and _listed_by_datasets(file.parent))
    ]


def _of_match(match: Path) -> list[Path]:
    if match.is_dir():
        return [file for file in visible_files(match) if is_data(file)]
    return data_files(match)


def left_out_lines(files: Sequence[str]) -> list[str]:
    """Message about files of a source that are not read; '' where there are none."""
    if not files:
        return []
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return [f"files left out: {', '.join(files[:_SHOWN])}{more}"]


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, in the order of their names."""
    inner = sorted(folder.rglob("*"))
    return [file for file in inner if file.is_file() and not _is_hidden(file.relative_to(folder))]


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.parts)


def _listed_by_datasets(folder: Path) -> set[str] | None:
    """Data files of a folder of `save_to_disk`, without caches; None for another folder."""
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        listed = json.loads(state.read_text(encoding="utf-8")).get("_data_files") or []
        return {str(entry["filename"]) for entry in listed}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{state}: expected the state of a saved dataset, found: {error}; copy it again"
        ) from error


def _refuse_splits(folder: Path, files: list[Path]) -> None:
    names = [part for file in files for part in file.relative_to(folder).parts]
    splits = sorted({match[1].lower() for name in names if (match := _SPLIT.match(name))})
    if len(splits) > 1:
        raise UserError(
            f"expected one split in {folder}, found {', '.join(splits)}; "
            "name the file or folder of the one to read"
        )


def fingerprint(path: Path) -> str:
    """A digest of the bytes of a file, or of all data files of a folder in their order."""
    digests = [_digest(file) for file in data_files(path)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
    except OSError as error:
        raise unreadable(file, error) from error
    return digest.hexdigest()


def unreadable(file: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"{file}: expected a readable file, found: {reason}; check its permissions")


@contextmanager
def open_text(file: Path, encoding: str) -> Iterator[BinaryIO]:
    """Open a text file as UTF-8 bytes, unpacked; invalid bytes are reported by the rows.

    Raises UserError for a packed file that is damaged, for text that is not in `encoding`, and for
    an encoding that Python does not know.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise UserError(
            f"data.encoding: expected an encoding such as utf-8, cp932 or cp949, found {encoding!r}"
        ) from None
    opener = PACKED.get(file.suffix.lower())
    try:
        with opener(file) if opener else file.open("rb") as content:
            yield content if _is_utf8(encoding) else _recoded(content, encoding)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # an error of the disk, not of its content
        raise UserError(f"{file}: expected a whole packed file, found: {error}") from error
    except UnicodeError as error:
        raise UserError(
            f"{file}: expected text in {encoding}, as data.encoding says, found other bytes: "
            f"{error}; correct it"
        ) from error


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def _recoded(content: BinaryIO, encoding: str) -> BinaryIO:
    text = io.TextIOWrapper(content, encoding, newline="").read()
    return io.BytesIO(text.removeprefix("\ufeff").encode())
