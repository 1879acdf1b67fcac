"""Rows come back whole, and each bad one is named by file, line and reason."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import Dataset

from workloads.data.row_files import left_out
from workloads.data.rows import BadRow, data_files, fingerprint, read_rows
from workloads.errors import UserError

pytestmark = pytest.mark.unit

QA = {"question": str, "answer": str}
GOOD = '{"question": "q", "answer": "a"}'


def write(path: Path, *lines: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(x.encode() if isinstance(x, str) else x for x in lines))
    return path


def reasons(path: Path, columns: dict[str, type] = QA) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in read_rows(path, columns).bad]


def test_jsonl_keeps_the_named_columns_in_order(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", '{"question": "1", "answer": "x", "more": 3}', GOOD, "")
    rows = read_rows(file, QA)
    assert rows.rows == [{"question": "1", "answer": "x"}, {"question": "q", "answer": "a"}]
    assert rows.bad == []


def test_without_names_all_columns_are_kept(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", '{"x": [1, {"y": null}], "z": 1.5}')
    assert read_rows(file, {}).rows == [{"x": [1, {"y": None}], "z": 1.5}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "q" "answer": "a"}', "invalid JSON at column 18: Expecting ',' delimiter"),
        ('{"question": "q', "invalid JSON at column 14: Unterminated string starting at"),
        (GOOD + " x", "invalid JSON at column 34: Extra data"),
        ('{"question": NaN, "answer": "a"}', "invalid JSON: NaN is no JSON value"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('"text"', "expected a JSON object, found text ('text')"),
        ("null", "expected a JSON object, found null"),
        ('{"question": "q", "anser": "a"}', "missing column 'answer'; found 'question', 'anser'"),
        ("{}", "missing column 'question'; found none"),
        (
            '{"question": "q", "answer": 42}',
            "column 'answer': expected text, found a whole number (42)",
        ),
        ('{"question": null, "answer": "a"}', "column 'question': expected text, found null"),
        (
            '{"question": true, "answer": "a"}',
            "column 'question': expected text, found true or false (True)",
        ),
        ('{"question": ["q"], "answer": "a"}', "column 'question': expected text, found a list"),
        (
            b'{"question": "caf\xe9", "answer": "a"}',
            "not UTF-8 at byte 18 (0xe9); save the file as UTF-8 "
            "(it reads as cp1252: set data.encoding=cp1252)",
        ),
        (
            '{"question": "\\ud83d", "answer": "a"}',
            "invalid text: half a surrogate pair (\\ud83d)",
        ),
    ],
)
def test_a_bad_jsonl_row_is_named(tmp_path: Path, line: str | bytes, reason: str):
    file = write(tmp_path / "a.jsonl", GOOD, "", line, GOOD)
    rows = read_rows(file, QA)
    assert rows.bad == [BadRow(file, 3, reason)]
    assert str(rows.bad[0]) == f"{file}:3: {reason}"
    assert len(rows.rows) == 2


def test_json_nested_beyond_reason_is_a_bad_row(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", GOOD, "[" * 100_000)
    ((line, reason),) = reasons(file)
    assert line == 2 and "recursion" in reason


def test_a_whole_surrogate_pair_is_fine(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", '{"question": "\\ud83d\\ude00", "answer": "a"}')
    assert read_rows(file, QA).rows[0]["question"] == "\U0001f600"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, ["1", "-3"], ["1.5", "true", '"1"']),
        (float, ["1", "1.5"], ["false", '"1"']),
        (bool, ["true"], ["1", "null"]),
        (list, ["[]"], ["{}", '"a"']),
        (dict, ["{}"], ["[]"]),
        (object, ["1", "null", "[]", "true"], []),
    ],
)
def test_types(tmp_path: Path, kind: type, good: list[str], bad: list[str]):
    file = write(tmp_path / "a.jsonl", *(f'{{"x": {value}}}' for value in good + bad))
    rows = read_rows(file, {"x": kind})
    assert len(rows.rows) == len(good)
    assert [row.line for row in rows.bad] == list(range(len(good) + 1, len(good + bad) + 1))


def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path: Path):
    text = b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode()
    assert len(read_rows(write(tmp_path / "a.jsonl", text), QA).rows) == 2
    file = write(tmp_path / "a.csv", b"\xef\xbb\xbfquestion,answer\r\nq,a\r\n")
    assert read_rows(file, QA).rows == [{"question": "q", "answer": "a"}]


def test_utf16_is_named(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(UserError, match="expected UTF-8 text, found UTF-16"):
        read_rows(file, QA)


def test_up_to_ten_bad_rows_are_skipped(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", *["nonsense"] * 10, GOOD)
    rows = read_rows(file, QA)
    assert (len(rows.rows), len(rows.bad)) == (1, 10)


def test_past_the_budget_the_first_bad_rows_are_listed(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", *["nonsense"] * 12, GOOD)
    with pytest.raises(UserError) as raised:
        read_rows(file, QA)
    first, *listed = str(raised.value).splitlines()
    assert first.startswith(f"expected at most 10 bad rows among 13 in {file}, found 12 bad;")
    expected = "invalid JSON at column 1: Expecting value"
    assert listed == [f"  {file}:1: {expected} (and 11 more rows, the last {file}:12)"]


def test_each_reason_of_bad_rows_is_listed_once(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", *["nonsense", '{"question": 3}'] * 6, GOOD)
    with pytest.raises(UserError) as raised:
        read_rows(file, QA)
    _, *listed = str(raised.value).splitlines()
    assert len(listed) == 2 and listed[0].startswith(f"  {file}:1: invalid JSON")
    assert listed[1].startswith(f"  {file}:2: ")
    assert listed[1].endswith(f"(and 5 more rows, the last {file}:12)")


def test_of_many_rows_a_thousandth_may_be_bad(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", *[GOOD] * 13_988, *["{}"] * 14)
    assert len(read_rows(file, QA).bad) == 14
    with pytest.raises(UserError, match="at most 14 bad rows among 14003"):
        read_rows(write(file, *[GOOD] * 13_988, *["{}"] * 15), QA)


def test_the_budget_can_be_set(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", GOOD, "{}")
    assert len(read_rows(file, QA, budget=1).bad) == 1
    with pytest.raises(UserError, match="at most 0 bad rows among 2"):
        read_rows(file, QA, budget=0)


def test_nothing_but_bad_rows_is_refused_within_the_budget_too(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", "{}", "[]")
    with pytest.raises(UserError, match="expected a good row among 2 .* found 2 bad"):
        read_rows(file, QA)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: bytes):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match="expected"):
        read_rows(file, QA)


def test_a_header_alone_is_no_row(tmp_path: Path):
    with pytest.raises(UserError, match="expected rows, found none"):
        read_rows(write(tmp_path / "a.csv", "question,answer", ""), QA)


def test_what_is_not_there_or_not_known_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="found nothing at"):
        read_rows(tmp_path / "no.jsonl", QA)
    with pytest.raises(UserError, match=r"ending in .jsonl.*\.csv.*\.zst.*, found .*a\.xlsx"):
        read_rows(write(tmp_path / "a.xlsx", GOOD), QA)
    with pytest.raises(UserError, match="found none"):
        read_rows(tmp_path, QA)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_named(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", GOOD)
    file.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_rows(file, QA)


def test_csv_counts_physical_lines(tmp_path: Path):
    file = write(
        tmp_path / "a.csv",
        "question,answer,note",
        '"two\nlines, and ""quotes""",a,',
        "too,few",
        "",
        "q,a,b,too many",
        '"x" y,a,b',
        b"caf\xe9,a,b",
        "q,a,b",
    )
    rows = read_rows(file, QA)
    assert rows.rows == [
        {"question": 'two\nlines, and "quotes"', "answer": "a"},
        {"question": "q", "answer": "a"},
    ]
    assert [(row.line, row.reason) for row in rows.bad] == [
        (4, "expected 3 fields as in the header, found 2"),
        (6, "expected 3 fields as in the header, found 4"),
        (7, "invalid CSV: ',' expected after '\"'"),
        (
            8,
            "not UTF-8 at byte 4 (0xe9); save the file as UTF-8 (counted in its field) "
            "(it reads as cp1252: set data.encoding=cp1252)",
        ),
    ]
    assert rows.place(1) == f"{file}:9"


def test_csv_fields_become_the_types_asked_for(tmp_path: Path):
    file = write(tmp_path / "a.csv", "n,x,yes,m", '7,1.5,True,"[{""a"": 1}]"', "7.5,1,no,[]")
    rows = read_rows(file, {"n": int, "x": float, "yes": bool, "m": list})
    assert rows.rows == [{"n": 7, "x": 1.5, "yes": True, "m": [{"a": 1}]}]
    assert rows.bad == [
        BadRow(file, 3, "column 'n': expected a whole number, found a number (7.5)")
    ]


def test_csv_text_that_looks_like_a_number_stays_text(tmp_path: Path):
    file = write(tmp_path / "a.csv", "question,answer", "007,1e3")
    assert read_rows(file, QA).rows == [{"question": "007", "answer": "1e3"}]


def test_a_long_document_fits_into_a_csv_field(tmp_path: Path):
    file = write(tmp_path / "a.csv", "question,answer", "q," + "a" * 500_000)
    assert len(read_rows(file, QA).rows[0]["answer"]) == 500_000


def test_a_quote_that_is_never_closed_loses_no_rows_unseen(tmp_path: Path):
    file = write(tmp_path / "a.csv", "question,answer", "q,a", '"q,a', "q,a", "q,a")
    with pytest.raises(UserError, match=r"a\.csv:3: expected a closing quote, found the end"):
        read_rows(file, QA)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("question,anser", r"a\.csv:1: .*found 'question', 'anser' \('answer' missing\)"),
        ("question,answer,answer", r"a\.csv:1: expected each column once, found 'answer' 2 times"),
    ],
)
def test_a_csv_header_without_the_columns_is_refused(tmp_path: Path, header: str, found: str):
    with pytest.raises(UserError, match=found):
        read_rows(write(tmp_path / "a.csv", header, "1,2,3"), QA)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_of_two_columns_of_one_name_none_is_lost_unseen(tmp_path: Path, name: str):
    file = tmp_path / name
    if name == "a.csv":
        write(file, "question,answer,answer", "q,right,wrong")
    else:
        table = pa.table([["q"], ["right"], ["wrong"]], names=["question", "answer", "answer"])
        pq.write_table(table, file)
    with pytest.raises(UserError, match="each column once, found 'answer' 2 times; rename"):
        read_rows(file, {})


def test_a_csv_column_without_a_name_has_that_of_its_place(tmp_path: Path):
    """pandas writes its index so, and a spreadsheet what was formatted beside the table."""
    file = write(tmp_path / "a.csv", ",question,answer,", "0,q,a,")
    assert read_rows(file, {}).rows == [
        {"column 1": "0", "question": "q", "answer": "a", "column 4": ""}
    ]


def test_lines_that_end_in_a_carriage_return_alone_are_named(tmp_path: Path):
    file = write(tmp_path / "a.csv", b"question,answer\rq,a\rq,a\r")
    with pytest.raises(UserError, match=r"a\.csv:1: .* found a carriage return alone; save"):
        read_rows(file, {})


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"PK\x03\x04\x14", "a zip archive, as .xlsx is"), (b"PAR1\x15\x04", "a Parquet file")],
)
def test_a_file_under_a_text_files_name_is_named(tmp_path: Path, start: bytes, kind: str):
    file = write(tmp_path / "a.csv", start + b"\0\xff\0")
    with pytest.raises(UserError, match=f"expected text, found {kind}; save a table as CSV"):
        read_rows(file, {})


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_parquet_counts_rows(tmp_path: Path):
    questions = [f"q{row}" for row in range(8)]
    questions[4] = None
    columns = {"question": questions, "answer": ["a"] * 8, "more": [1] * 8}
    file = write_parquet(tmp_path / "a.parquet", columns)
    rows = read_rows(file, QA)
    assert [row["question"] for row in rows.rows] == ["q0", "q1", "q2", "q3", "q5", "q6", "q7"]
    assert rows.rows[0] == {"question": "q0", "answer": "a"}
    assert rows.bad == [BadRow(file, 5, "column 'question': expected text, found null")]
    assert rows.place(4) == f"{file}:6"


def test_parquet_messages_are_lists_of_objects(tmp_path: Path):
    turns = [{"role": "user", "content": "hello"}]
    file = write_parquet(tmp_path / "a.parquet", {"messages": [turns]})
    assert read_rows(file, {"messages": list}).rows == [{"messages": turns}]


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path):
    file = write_parquet(tmp_path / "a.parquet", {"question": ["q"]})
    with pytest.raises(UserError, match="found 'question' .'answer' missing"):
        read_rows(file, QA)


def test_parquet_text_that_is_not_utf8_costs_its_own_row(tmp_path: Path):
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"a\xe9bc")
    )
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["1", "2", "3"], "answer": broken}), file)
    rows = read_rows(file, QA)
    assert [row["answer"] for row in rows.rows] == ["a", "c"]
    (bad,) = rows.bad
    assert bad.line == 2 and bad.reason.startswith("not UTF-8 at byte 1 (0xe9)")


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    file = write_parquet(tmp_path / "a.parquet", {"question": ["q"], "answer": ["a"]})
    content = file.read_bytes()
    for damaged in (b"", b"no parquet", content[:-4], content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.parquet: expected"):
            read_rows(file, QA)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path):
    one, two = '{"x": 1}', '{"x": 2}'
    write(tmp_path / "b.jsonl", two, "{}")
    write(tmp_path / "a" / "z.jsonl", one, one)
    write(tmp_path / "README.md", "not data")
    write(tmp_path / ".cache" / "c.jsonl", "not data")
    rows = read_rows(tmp_path, {"x": int})
    assert [row["x"] for row in rows.rows] == [1, 1, 2]
    assert [rows.place(index) for index in range(3)] == [
        f"{tmp_path}/a/z.jsonl:1",
        f"{tmp_path}/a/z.jsonl:2",
        f"{tmp_path}/b.jsonl:1",
    ]
    assert rows.bad[0].file == tmp_path / "b.jsonl"


def test_an_empty_file_in_a_folder_is_named(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b.jsonl", "")
    with pytest.raises(UserError, match=r"b\.jsonl: expected rows, found none"):
        read_rows(tmp_path, QA)


def packed(path: Path, content: str) -> Path:
    """A file packed as its name says."""
    raw = content.encode()
    how = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    how[".zst"] = zstandard.ZstdCompressor().compress
    path.write_bytes(how[path.suffix](raw))
    return path


def test_a_folder_of_several_kinds_gives_all_rows_and_names_what_is_left_out(tmp_path: Path):
    """L-F6"""
    packed(tmp_path / "b.jsonl.gz", GOOD)
    write(tmp_path / "a.json", f"[{GOOD},", f"{GOOD}]")
    write(tmp_path / "c.csv", "question,answer", "q,a")
    write(tmp_path / "d.txt", "one", "two")
    for name in ("e.pdf", "f.jsonl.zip", "README.txt", ".hidden.jsonl", "dataset_infos.json"):
        write(tmp_path / name, "not data")
    rows = read_rows(tmp_path, {})
    assert len(rows.rows) == 6 and rows.rows[-1] == {"text": "two"}
    assert [file.name for file in left_out(tmp_path)] == [
        "README.txt",
        "dataset_infos.json",
        "e.pdf",
        "f.jsonl.zip",
    ]
    assert left_out(tmp_path / "a.json") == []


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_texts_are_read(tmp_path: Path, suffix: str):
    """L-F6"""
    file = packed(tmp_path / f"a.ndjson{suffix}", f"{GOOD}\n{GOOD}\n")
    assert len(read_rows(file, QA).rows) == 2
    assert read_rows(file, QA).place(1) == f"{file}:2"
    cut = packed(tmp_path / f"cut.jsonl{suffix}", f"{GOOD}\n" * 2000)
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"expected a whole packed file"):
        read_rows(cut, QA)
    cut.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"expected a whole packed file"):
        read_rows(cut, QA)
    twice = tmp_path / f"twice.jsonl{suffix}"
    twice.write_bytes(file.read_bytes() * 2)  # as `cat` joins packed files
    assert len(read_rows(twice, QA).rows) == 4


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_of_rows_is_read_with_its_lines(tmp_path: Path, name: str):
    """L-S6"""
    rows = [{"question": f"q\n{i}", "answer": "a"} for i in range(3)]
    for indent in (None, 1):
        file = write(tmp_path / name, json.dumps(rows, indent=indent))
        assert read_rows(file, QA).rows == rows
    assert read_rows(file, QA).place(1) == f"{file}:6"
    file = write(tmp_path / name, "[", GOOD + ",", '{"question": 1},', GOOD, "]")
    assert reasons(file)[0][0] == 3
    with pytest.raises(UserError, match=r":2: invalid JSON in this row"):
        read_rows(write(tmp_path / name, "[", '{"question": "q", "answer": }', "]"), QA)
    with pytest.raises(UserError, match="expected the end of the array"):
        read_rows(write(tmp_path / name, "[", GOOD + ","), QA)


def test_rows_of_several_lines_and_of_one_line_in_json(tmp_path: Path):
    file = write(tmp_path / "a.json", GOOD, GOOD)
    assert len(read_rows(file, QA).rows) == 2
    pretty = json.dumps(json.loads(GOOD), indent=2)
    assert len(read_rows(write(tmp_path / "a.jsonl", pretty, pretty), QA).rows) == 2


def test_tabs_and_lines_of_text(tmp_path: Path):
    file = write(tmp_path / "a.tsv", "question\tanswer", 'one, two\t"tab\there"')
    assert read_rows(file, QA).rows == [{"question": "one, two", "answer": "tab\there"}]
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbffirst", "", " second ", b"\xff")
    rows = read_rows(file, {"text": str})
    assert [row["text"] for row in rows.rows] == ["first", " second "]
    assert rows.bad[0].line == 4 and "not UTF-8" in rows.bad[0].reason


@pytest.mark.parametrize(
    "name, header", [("a.csv", "question;answer"), ("a.csv", "q\ta"), ("a.tsv", "question,answer")]
)
def test_another_delimiter_is_named(tmp_path: Path, name: str, header: str):
    file = write(tmp_path / name, header, "1;2")
    with pytest.raises(UserError, match=rf"{name}:1: expected columns separated by "):
        read_rows(file, {})


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "gb18030", "cp949"])
def test_another_encoding_is_named_and_read_where_it_is_said(tmp_path: Path, encoding: str):
    """L-S5"""
    text = "問,答\n中国,北京\n" if encoding != "cp949" else "물음,답\n서울,한국\n"
    file = write(tmp_path / "a.csv", text.encode(encoding))
    with pytest.raises(UserError, match=r"a\.csv:1: not UTF-8 .* reads as \w+"):
        read_rows(file, {})
    found = read_rows(file, {}, encoding=encoding).rows
    assert found == [dict(zip(*[line.split(",") for line in text.splitlines()], strict=True))]
    with pytest.raises(UserError, match="as data.encoding says"):
        read_rows(write(tmp_path / "b.csv", b"a,b\n\x81\x00\xff,1"), {}, encoding="cp932")


def test_utf_16_is_read_where_it_is_said(tmp_path: Path):
    """L-S5: as spreadsheets export it."""
    file = write(tmp_path / "a.tsv", "質問\t回答\r\n都は\t奈良\r\n".encode("utf-16"))
    with pytest.raises(UserError, match="data.encoding=utf-16"):
        read_rows(file, {})
    assert read_rows(file, {}, encoding="utf-16").rows == [{"質問": "都は", "回答": "奈良"}]


def test_arrow_files_and_folders_that_datasets_has_saved(tmp_path: Path):
    """L-F6"""
    rows = [{"question": str(i), "answer": "a"} for i in range(5)]
    saved = tmp_path / "saved"
    Dataset.from_list(rows).save_to_disk(saved)
    write(saved / "cache-1234.arrow", "of another step")
    assert read_rows(saved, QA).rows == rows
    assert [file.name for file in left_out(saved)] == ["cache-1234.arrow"]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read_rows(tmp_path / "a.arrow", {"answer": str}).rows == [{"answer": "a"}] * 5
    with pytest.raises(UserError, match="expected a whole Arrow file"):
        read_rows(write(tmp_path / "b.arrow", "no table"), QA)


def test_a_pattern_stands_for_its_files(tmp_path: Path):
    """L-F6"""
    for name in ("a/1.jsonl", "a/2.jsonl", "b/3.jsonl"):
        write(tmp_path / name, GOOD)
    assert len(data_files(tmp_path / "*" / "*.jsonl")) == 3
    assert len(data_files(tmp_path / "**" / "[12].jsonl")) == 2
    assert len(data_files(tmp_path / "[ab]")) == 3
    with pytest.raises(UserError, match="files of rows that match"):
        data_files(tmp_path / "*.csv")


def test_a_function_decides_what_a_row_keeps(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", GOOD, '{"other": 1}', "{")
    rows = read_rows(file, lambda row: {"n": len(row)} if "question" in row else "no question")
    assert rows.rows == [{"n": 2}]
    assert [(row.line, row.reason.split(" at")[0]) for row in rows.bad] == [
        (2, "no question"),
        (3, "invalid JSON"),
    ]


@pytest.mark.parametrize("other", ["test.jsonl", "validation-00000.jsonl", "test/0.jsonl"])
def test_a_folder_of_several_splits_is_refused(tmp_path: Path, other: str):
    write(tmp_path / "train-00000.jsonl", GOOD)
    write(tmp_path / "train-00001.jsonl", GOOD)
    assert len(data_files(tmp_path)) == 2
    write(tmp_path / other, GOOD)
    with pytest.raises(UserError, match="expected one split"):
        data_files(tmp_path)


def test_the_fingerprint_follows_the_bytes_alone(tmp_path: Path):
    file = write(tmp_path / "one" / "a.jsonl", GOOD)
    copy = write(tmp_path / "two" / "b.jsonl", GOOD)
    assert fingerprint(file) == fingerprint(copy) == read_rows(file, QA).fingerprint
    assert fingerprint(file.parent) == fingerprint(file)
    before = fingerprint(file)
    write(file, GOOD, GOOD)
    assert fingerprint(file) != before
    write(file.parent / "b.jsonl", GOOD)
    assert len({fingerprint(file.parent), fingerprint(file), before}) == 3
