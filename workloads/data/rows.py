"""Reads rows of JSON, CSV, text, Parquet and Arrow files; names bad ones by file and line.

A row is bad when it cannot be read (invalid JSON, not UTF-8, wrong number of fields), lacks a
column or holds the wrong type. Few bad rows are skipped and reported; too many stop the reading,
since then the file is wrong rather than some of its rows.
"""

import csv
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from workloads.data.encodings import not_utf8, reads_as, text_lines, without_utf8
from workloads.data.row_files import data_files, fingerprint, kind_of, open_text, unreadable
from workloads.errors import UserError

Row = dict[str, Any]
Columns = Mapping[str, type]
# The part of a row to keep, or what is wrong with it.
Accept = Callable[[Row], Row | str]

_SHOWN = 10
# Longer fields than csv's own 131072 characters are ordinary documents.
_LONGEST_FIELD = 2**27
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SAMPLE = 200  # lines of a CSV file that tell its encoding
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

    def counts(self) -> dict[Path, int]:
        """Good rows of each file."""
        ends = [start for start, _ in self._files[1:]] + [len(self.rows)]
        pairs = zip(self._files, ends, strict=True)
        return {file: end - start for (start, file), end in pairs}

    def _begin(self, file: Path) -> None:
        self._files.append((len(self.rows), file))

    def _add(self, line: int, found: Row | str) -> None:
        if isinstance(found, str):
            self.bad.append(BadRow(self._files[-1][1], line, found))
        else:
            self.rows.append(found)
            self._lines.append(line)


def read_rows(
    path: Path,
    columns: Columns | Accept,
    budget: int | None = None,
    encoding: str = "utf-8",
) -> Rows:
    """The rows of a file, of all files in a folder, or of those that a pattern matches.

    Files end in one of `row_files.kinds()`; a folder may hold several kinds. A text file gives a
    row with `text` for each line; JSON is one row a line, or an array of rows. `columns` are those
    to keep, with their types; without names rows keep all. Types are str, int, float (whole numbers
    pass), bool, list, dict, or object for anything; a field of CSV and TSV that is not declared as
    text is read as JSON. A function in their place returns for each row what to keep, or what is
    wrong. Blank lines are no rows. encoding: of text files.

    `budget` is how many bad rows are skipped: by default 10, or 0.1 % of the rows where that is
    more. Raises UserError past it, listing the first ones; also for a missing or empty file, a
    missing column of a table, and a folder with several splits.
    """
    accept = columns if callable(columns) else None
    wanted: Columns = {} if callable(columns) else columns
    result = Rows()
    for file in data_files(path):
        result._begin(file)
        read = len(result.rows) + len(result.bad)
        for line, found in _read(file, wanted, encoding):
            good = accept is not None and not isinstance(found, str)
            result._add(line, accept(found) if good else found)  # type: ignore[arg-type, misc]
        if read == len(result.rows) + len(result.bad):
            raise UserError(f"{file}: expected rows, found none; fill or remove the file")
    _keep_within(budget, path, result)
    result.fingerprint = fingerprint(path)
    return result


def _keep_within(budget: int | None, path: Path, result: Rows) -> None:
    bad, total = result.bad, len(result.rows) + len(result.bad)
    allowed = max(10, total // 1000) if budget is None else budget
    if len(bad) <= allowed and result.rows:
        return
    wanted = f"at most {allowed} bad rows" if len(bad) > allowed else "a good row"
    raise UserError(
        f"expected {wanted} among {total} in {path}, found {len(bad)} bad; "
        f"fix them or allow for more:{indented(by_reason(bad))}"
    )


def by_reason(bad: Sequence[object]) -> list[str]:
    """Rows as "PLACE: REASON", a line for each reason: the first row that has it, and how many."""
    reasons: dict[str, list[str]] = {}
    for row in bad:
        place, _, reason = str(row).partition(": ")
        reasons.setdefault(reason, []).append(place)
    lines = []
    for reason, places in list(reasons.items())[:_SHOWN]:
        more = f"{len(places) - 1:,} more row{'s' * (len(places) > 2)}, the last {places[-1]}"
        lines.append(f"{places[0]}: {reason}{f' (and {more})' if len(places) > 1 else ''}")
    if len(reasons) > _SHOWN:
        lines.append(f"and {len(reasons) - _SHOWN:,} more kinds of mistakes")
    return lines


def indented(lines: Iterable[str]) -> str:
    """Format lines below a message."""
    return "".join(f"\n  {line}" for line in lines)


def _read(file: Path, columns: Columns, encoding: str) -> Iterator[tuple[int, Row | str]]:
    """Yield line and row, or line and what is wrong with it."""
    kind = str(kind_of(file))
    try:
        if kind in _READERS:
            yield from _READERS[kind](file, columns)
            return
        with open_text(file, encoding) as content:
            yield from _TEXT_READERS[kind](file, text_lines(file, content), columns)
    except OSError as error:
        raise unreadable(file, error) from error


def _read_json(
    file: Path, lines: Iterator[bytes], columns: Columns
) -> Iterator[tuple[int, Row | str]]:
    """One row a line; else one array of rows, or rows of several lines each."""
    head = _first_lines(lines)
    rest = chain(head, lines)
    if not _is_one_value(head, file):
        yield from _read_json_values(file, b"".join(rest), columns)
        return
    for number, line in enumerate(rest, start=1):
        if line.strip():
            yield number, _from_json_line(line.rstrip(b"\r\n"), columns)


def _first_lines(lines: Iterator[bytes]) -> list[bytes]:
    """Lines up to the second one that is not blank."""
    head: list[bytes] = []
    for line in lines:
        head.append(line)
        if sum(bool(item.strip()) for item in head) == 2:
            break
    return head


def _is_one_value(head: list[bytes], file: Path) -> bool:
    """Whether the first line is a row of its own, good or bad; an array by itself is none."""
    full = [line.strip() for line in head if line.strip()]
    if not full:
        return True
    try:
        value = json.loads(full[0])
    except ValueError:
        begins = full[0][:1] if kind_of(file) == ".json" else full[0]
        return full[0][:1] != b"[" and begins != b"{"
    return len(full) > 1 or not isinstance(value, list)


def _read_json_values(
    file: Path, content: bytes, columns: Columns
) -> Iterator[tuple[int, Row | str]]:
    """Objects of an array, or one after the other, each with the line where it begins."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}:{line}: {not_utf8(1, content[error.start])}{reads_as(content)}"
        ) from error
    place = _skip(text, 0, "")
    in_array = text[place : place + 1] == "["
    place, line, counted = _skip(text, place + in_array, ""), 1, 0
    while place < len(text) and not (in_array and text[place] == "]"):
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{file}:{line}: invalid JSON in this row: {reason}; fix it") from error
        yield line, _from_json_value(value, text[place:end], columns)
        place = _skip(text, end, "," if in_array else "")
    if in_array and place >= len(text):
        raise UserError(f"{file}: expected the end of the array, ], found the end of the file")


def _skip(text: str, place: int, also: str) -> int:
    while place < len(text) and (text[place].isspace() or (also and text[place] == also)):
        place += 1
    return place


def _from_json_line(line: bytes, columns: Columns) -> Row | str:
    try:
        text = line.decode()
        return _from_json_value(_DECODER.decode(text), text, columns)
    except UnicodeDecodeError as error:
        return not_utf8(error.start + 1, line[error.start]) + reads_as(line)
    except json.JSONDecodeError as error:
        return f"invalid JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {error}"


def _from_json_value(value: Any, text: str, columns: Columns) -> Row | str:
    if "\\u" in text:  # only an escape can encode half a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            return f"invalid text: half a surrogate pair (\\u{half:04x})"
    if not isinstance(value, dict):
        return f"expected a JSON object, found {described(value)}"
    return _checked(value, columns)


def _read_txt(
    file: Path, lines: Iterator[bytes], columns: Columns
) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, _checked({"text": line.decode().rstrip("\r\n")}, columns)
            except UnicodeDecodeError as error:
                yield number, not_utf8(error.start + 1, line[error.start]) + reads_as(line)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _checked(row: Row, columns: Columns) -> Row | str:
    if not columns:
        return row
    for name, kind in columns.items():
        if name not in row:
            return f"missing column {name!r}; found {_listed(row)}"
        if not _is_a(row[name], kind):
            found = described(row[name])
            return f"column {name!r}: expected {_NAMES.get(kind, kind.__name__)}, found {found}"
    return {name: row[name] for name in columns}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def described(value: object) -> str:
    """The type of a value in words, and a short value itself: for messages."""
    name = _NAMES.get(type(value), type(value).__name__)
    if value is None or isinstance(value, (list, dict)):
        return name
    text = repr(value)
    return f"{name} ({text if len(text) <= 40 else text[:37] + '...'})"


def _read_csv(
    file: Path, lines: Iterator[bytes], columns: Columns
) -> Iterator[tuple[int, Row | str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    head = list(islice(lines, _SAMPLE))
    sample = b"".join(without_utf8(head))
    # An invalid byte is passed on to the row that holds it.
    texts = (line.decode(errors="surrogateescape") for line in chain(head, lines))
    delimiter = "\t" if kind_of(file) == ".tsv" else ","
    reader = csv.reader(texts, strict=True, delimiter=delimiter)
    header: list[str] = []
    for number, fields in _csv_records(file, reader):
        if isinstance(fields, str):
            yield number, fields
        elif header:
            yield number, _from_fields(header, fields, columns, sample)
        else:
            _refuse_other_encoding(fields, sample, f"{file}:{number}")
            _refuse_other_delimiter(fields, delimiter, f"{file}:{number}")
            # One without a name is called by its place: it may hold something.
            header = [name or f"column {place}" for place, name in enumerate(fields, start=1)]
            _require(columns, header, f"{file}:{number}")


def _refuse_other_encoding(header: list[str], sample: bytes, place: str) -> None:
    raw = ",".join(header).encode(errors="surrogateescape")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: {not_utf8(error.start + 1, raw[error.start])}{reads_as(sample)}"
        ) from error


def _refuse_other_delimiter(header: list[str], delimiter: str, place: str) -> None:
    if len(header) == 1 and set(header[0]) & set(",;\t|") - {delimiter}:
        raise UserError(
            f"{place}: expected columns separated by {delimiter!r}, found {header[0]!r}; save the "
            "file with commas as .csv, or with tabs as .tsv"
        )


def _csv_records(file: Path, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """First physical line of each record, and its fields or what is wrong with it."""
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):  # everything behind the quote would be lost in silence
                raise UserError(
                    f"{file}:{number}: expected a closing quote, found the end of the file; "
                    'close the quoted field ("" stands for a quote inside one)'
                ) from error
            if "new-line character" in str(error):
                raise UserError(
                    f"{file}:{number}: expected lines that end in a line feed, found a carriage "
                    "return alone; save the file as CSV in UTF-8"
                ) from error
            yield number, f"invalid CSV: {error}"
            continue
        if fields is None:
            return
        if fields:
            yield number, fields


def _from_fields(
    header: list[str], fields: list[str], columns: Columns, sample: bytes
) -> Row | str:
    if len(fields) != len(header):
        return f"expected {len(header)} fields as in the header, found {len(fields)}"
    for text in fields:
        if broken := _NOT_UTF8.search(text):
            place = len(text[: broken.start()].encode(errors="surrogateescape")) + 1
            found = not_utf8(place, ord(broken[0]) - 0xDC00)
            other = reads_as(sample or text.encode(errors="surrogateescape"))
            return f"{found} (counted in its field){other}"
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
    """Raise UserError where a column to keep, or of all where all are kept, is missing or twice."""
    if twice := next((name for name in columns or found if found.count(name) > 1), None):
        raise UserError(
            f"{place}: expected each column once, found {twice!r} {found.count(twice)} times; "
            "rename or remove one"
        )
    if missing := next((name for name in columns if name not in found), None):
        raise UserError(
            f"{place}: expected the columns {_listed(columns)}, found {_listed(found)}"
            f" ({missing!r} missing); rename them or map the columns"
        )


def _read_parquet(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    import pyarrow.parquet as pq

    with _whole_table(file, "Parquet"), pq.ParquetFile(file) as table:
        _require(columns, table.schema_arrow.names, str(file))
        batches = table.iter_batches(4096, columns=list(columns) or None)
        yield from _table_rows(batches, columns)


def _read_arrow(file: Path, columns: Columns) -> Iterator[tuple[int, Row | str]]:
    """A stream, as `datasets` writes it, or a file, as others do."""
    import pyarrow as pa

    with _whole_table(file, "Arrow"), pa.memory_map(str(file)) as content:
        try:
            table = pa.ipc.open_stream(content)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(content)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            opened, batches = table, iter(table)
        _require(columns, opened.schema.names, str(file))
        chosen = (batch.select(list(columns)) if columns else batch for batch in batches)
        yield from _table_rows(chosen, columns)


@contextmanager
def _whole_table(file: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: expected a whole {kind} file, found: {reason}") from error


def _table_rows(batches: Iterable[Any], columns: Columns) -> Iterator[tuple[int, Row | str]]:
    rows = chain.from_iterable(_plain_rows(batch) for batch in batches)
    for number, row in enumerate(rows, start=1):
        yield number, row if isinstance(row, str) else _checked(row, columns)


def _plain_rows(batch: Any) -> Iterator[Row | str]:
    """The rows of a record batch; text that is not UTF-8 costs the row that holds it."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield not_utf8(error.start + 1, error.object[error.start]) + " (counted in its field)"
            return
        for place in range(len(batch)):
            yield from _plain_rows(batch.slice(place, 1))
        return
    yield from rows


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_READERS = {".parquet": _read_parquet, ".arrow": _read_arrow}
_TEXT_READERS = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_txt,
}
__all__ = ["Accept", "BadRow", "Rows", "data_files", "described", "fingerprint", "read_rows"]
