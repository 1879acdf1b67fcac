"""Rows from local JSONL, Parquet and CSV files, with every bad row named by file and line.

A row is bad when it cannot be read (invalid JSON, not UTF-8, wrong number of fields), lacks a
column or holds the wrong type. Few bad rows are skipped and reported; too many stop the reading,
since then the file is wrong rather than some of its rows.
"""

import csv
import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import UserError

Row = dict[str, Any]
Columns = Mapping[str, type]

_SHOWN = 10
_BOM = b"\xef\xbb\xbf"
# Longer fields than csv's own 131072 characters are ordinary documents.
_LONGEST_FIELD = 2**27
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SPLIT = re.compile(r"(train|test|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)
_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class BadRow:
    """A row that was skipped: `line` counts lines of a text file or rows of Parquet, from 1."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Rows:
    """Good rows in file order, the bad ones skipped, and a fingerprint of the files' bytes."""

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    fingerprint: str = ""
    _lines: array = field(default_factory=lambda: array("q"))
    _files: list[tuple[int, Path]] = field(default_factory=list)

    def place(self, index: int) -> str:
        """`file:line` of the good row at `index`, for messages about what it holds."""
        number = bisect_right(self._files, index, key=lambda start: start[0]) - 1
        return f"{self._files[number][1]}:{self._lines[index]}"

    def _begin(self, file: Path) -> None:
        self._files.append((len(self.rows), file))

    def _add(self, line: int, found: Row | str) -> None:
        if isinstance(found, str):
            self.bad.append(BadRow(self._files[-1][1], line, found))
        else:
            self.rows.append(found)
            self._lines.append(line)


def read_rows(path: Path, columns: Columns, budget: int | None = None) -> Rows:
    """The rows of a file, or of all files in a folder, that have `columns` of the given types.

    `path` ends in .jsonl, .parquet or .csv (UTF-8, with or without a byte order mark), or is a
    folder of such files of one kind. Rows keep the named columns only; without names they keep
    all. Types are str, int, float (whole numbers pass), bool, list, dict, or object for anything;
    a CSV field that is not to be text is read as JSON. Blank lines are no rows. Files are read as
    a stream.

    `budget` is how many bad rows are skipped: by default 10, or 0.1 % of the rows where that is
    more. Raises UserError past it, listing the first ones; also for a missing or empty file, a
    missing column of Parquet or CSV, and a folder with several kinds or splits.
    """
    result = Rows()
    for file in data_files(path):
        result._begin(file)
        read = len(result.rows) + len(result.bad)
        for line, found in _read(file, columns):
            result._add(line, found)
        if read == len(result.rows) + len(result.bad):
            raise UserError(f"{file}: expected rows, found none; fill or remove the file")
    _keep_within(budget, path, result)
    result.fingerprint = fingerprint(path)
    return result


def data_files(path: Path) -> list[Path]:
    """`path` itself, or the data files below it in the order of their names."""
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise UserError(f"expected a file ending in {_kinds()}, found {path}; convert it")
        return [path]
    if not path.is_dir():
        raise UserError(f"expected a file or folder of rows, found nothing at {path}; check it")
    below = [file for file in sorted(path.rglob("*")) if _is_data(file.relative_to(path))]
    files = [file for file in below if file.is_file()]
    if not files:
        raise UserError(f"expected files ending in {_kinds()} in {path}, found none; add some")
    _refuse_mixture(path, files)
    return files


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
        raise _unreadable(file, error) from error
    return digest.hexdigest()


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file}: expected a readable file, found: {error.strerror}; check its rights")


def _kinds() -> str:
    return ", ".join(_READERS)


def _is_data(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.suffix.lower() in _READERS


def _refuse_mixture(folder: Path, files: list[Path]) -> None:
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"expected files of one kind in {folder}, found {', '.join(kinds)}; name one file"
        )
    names = [part for file in files for part in file.relative_to(folder).parts]
    splits = sorted({match[1].lower() for name in names if (match := _SPLIT.match(name))})
    if len(splits) > 1:
        raise UserError(
            f"expected one split in {folder}, found {', '.join(splits)}; "
            "name the file or folder of the one to read"
        )


def _keep_within(budget: int | None, path: Path, result: Rows) -> None:
    bad, total = result.bad, len(result.rows) + len(result.bad)
    allowed = max(10, total // 1000) if budget is None else budget
    if len(bad) <= allowed and result.rows:
        return
    shown = "".join(f"\n  {row}" for row in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    wanted = f"at most {allowed} bad rows" if len(bad) > allowed else "a good row"
    raise UserError(
        f"expected {wanted} among {total} in {path}, found {len(bad)} bad; "
        f"mend them or allow for more:{shown}{more}"
    )


def _read(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    """Line and row, or line and what is wrong with it."""
    try:
        yield from _READERS[file.suffix.lower()](file, columns)
    except OSError as error:
        raise _unreadable(file, error) from error


def _read_jsonl(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(_without_mark(file, lines), start=1):
            if line.strip():
                yield number, _from_json_line(line.rstrip(b"\r\n"), columns)


def _without_mark(file: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        if number == 0 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{file}: expected UTF-8 text, found UTF-16; convert it (iconv)")
        yield line.removeprefix(_BOM) if number == 0 else line


def _from_json_line(line: bytes, columns: Columns) -> Row | str:
    try:
        value = _DECODER.decode(line.decode())
        if b"\\u" in line:  # only an escape can smuggle in half a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return _not_utf8(error.start + 1, line[error.start])
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"invalid text: half a surrogate pair (\\u{half:04x})"
    except json.JSONDecodeError as error:
        return f"invalid JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {error}"
    if not isinstance(value, dict):
        return f"expected a JSON object, found {_described(value)}"
    return _checked(value, columns)


def _not_utf8(column: int, byte: int) -> str:
    return f"not UTF-8 at byte {column} (0x{byte:02x}); save the file as UTF-8"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _checked(row: Row, columns: Columns) -> Row | str:
    if not columns:
        return row
    for name, kind in columns.items():
        if name not in row:
            return f"missing column {name!r}; found {_listed(row)}"
        if not _is_a(row[name], kind):
            found = _described(row[name])
            return f"column {name!r}: expected {_NAMES.get(kind, kind.__name__)}, found {found}"
    return {name: row[name] for name in columns}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _described(value: object) -> str:
    name = _NAMES.get(type(value), type(value).__name__)
    if value is None or isinstance(value, (list, dict)):
        return name
    text = repr(value)
    return f"{name} ({text if len(text) <= 40 else text[:37] + '...'})"


def _read_csv(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with file.open("rb") as lines:
        # A byte that is not UTF-8 is carried along to the row it belongs to.
        texts = (line.decode(errors="surrogateescape") for line in _without_mark(file, lines))
        reader = csv.reader(texts, strict=True)
        header: list[str] = []
        for number, fields in _csv_records(file, reader):
            if isinstance(fields, str):
                yield number, fields
            elif header:
                yield number, _from_fields(header, fields, columns)
            else:
                header = fields
                _require(columns, header, f"{file}:{number}")


def _csv_records(file: Path, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """First physical line of each record, and its fields or what is wrong with it."""
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):  # everything behind the quote would be lost unseen
                raise UserError(
                    f"{file}:{number}: expected a closing quote, found the end of the file; "
                    'close the quoted field ("" stands for a quote inside one)'
                ) from error
            yield number, f"invalid CSV: {error}"
            continue
        if fields is None:
            return
        if fields:
            yield number, fields


def _from_fields(header: list[str], fields: list[str], columns: Columns) -> Row | str:
    if len(fields) != len(header):
        return f"expected {len(header)} fields as in the header, found {len(fields)}"
    for text in fields:
        if broken := _NOT_UTF8.search(text):
            place = len(text[: broken.start()].encode(errors="surrogateescape")) + 1
            return _not_utf8(place, ord(broken[0]) - 0xDC00) + " (counted in its field)"
    row: Row = dict(zip(header, fields, strict=True))
    for name, kind in columns.items():
        with suppress(ValueError):  # stays text, and is named as such
            row[name] = _from_text(row[name], kind)
    return _checked(row, columns)


def _from_text(text: str, kind: type) -> object:
    if kind in (str, object):
        return text
    return _DECODER.decode(text.lower() if kind is bool else text)


def _require(columns: Columns, found: list[str], place: str) -> None:
    missing = [name for name in columns if name not in found]
    twice = [name for name in columns if found.count(name) > 1]
    if missing or twice:
        what = f"once, found it {found.count(twice[0])} times" if twice else "missing"
        wanted = _listed(columns)
        raise UserError(
            f"{place}: expected the columns {wanted}, found {_listed(found)}"
            f" ({(twice or missing)[0]!r} {what}); rename them or map the columns"
        )


def _read_parquet(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _require(columns, table.schema_arrow.names, str(file))
            number = 0
            for batch in table.iter_batches(4096, columns=list(columns) or None):
                for row in _plain_rows(batch):
                    number += 1
                    yield number, row if isinstance(row, str) else _checked(row, columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: expected a whole Parquet file, found: {reason}") from error


def _plain_rows(batch: Any) -> Iterator[Row | str]:
    """The rows of a record batch; text that is not UTF-8 costs the row that holds it."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield _not_utf8(error.start + 1, error.object[error.start]) + " (counted in its field)"
            return
        for place in range(len(batch)):
            yield from _plain_rows(batch.slice(place, 1))
        return
    yield from rows


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
