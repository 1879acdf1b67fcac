"""Following files while they are written: nothing lost, nothing twice, memory bounded."""

import json
import os
from pathlib import Path

import pytest

from workloads.monitor.reading.follow import CHUNK, Follower, is_broken, number, read_object, whole

pytestmark = pytest.mark.unit


class Log:
    """A JSON Lines file and its follower, which counts how often it began anew."""

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self.path, self.anew = path, 0
        self.follower = Follower(path, self._forget, tail)

    def _forget(self) -> None:
        self.anew += 1

    def add(self, text: str | bytes) -> None:
        with self.path.open("ab") as file:
            file.write(text if isinstance(text, bytes) else text.encode())

    def steps(self, **words: int) -> list[int]:
        return [row["step"] for row in self.follower.rows(**words)]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "metrics.jsonl")


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"step": step}) + "\n" for step in range(first, last + 1))


def test_rows_come_once_as_the_file_grows(log: Log) -> None:
    assert log.steps() == []  # the run has not begun
    log.add(lines(1, 3))
    assert log.steps() == [1, 2, 3]
    assert log.steps() == []
    log.add(lines(4, 4))
    assert log.steps() == [4] and log.anew == 0


def test_a_half_written_line_waits_for_its_end(log: Log) -> None:
    log.add(lines(1, 1) + '{"step": ')
    assert log.steps() == [1]
    log.add("2")
    assert log.steps() == [] and log.follower.behind == 0
    log.add("}\n")
    assert log.steps() == [2] and log.follower.damaged == 0


def test_a_character_cut_in_two_is_whole_in_the_end(log: Log) -> None:
    text = '{"step": 1, "note": "鑪"}\n'.encode()
    log.add(text[:-4])
    assert log.steps() == []
    log.add(text[-4:])
    assert list(log.steps()) == [1]


def test_damaged_lines_are_counted_and_passed_over(log: Log) -> None:
    log.add("not json\n[1]\n\n" + lines(5, 5))
    log.add(b'{"step": \xff}\n' + b"\0" * 50 + b"\n" + b"[" * 5000 + b"\n")
    log.add(lines(6, 6))
    assert log.steps() == [5, 6] and log.follower.damaged == 5


def test_a_cut_file_is_read_from_its_start(log: Log) -> None:
    log.add(lines(1, 9))
    assert len(log.steps()) == 9
    os.truncate(log.path, 0)
    log.add(lines(1, 2))
    assert log.steps() == [1, 2] and log.anew == 1


def test_a_replaced_file_is_read_from_its_start(log: Log, tmp_path: Path) -> None:
    log.add(lines(1, 2))
    assert log.steps() == [1, 2]
    other = tmp_path / "other"
    other.write_text(lines(1, 4))
    os.replace(other, log.path)
    assert log.steps() == [1, 2, 3, 4] and log.anew == 1


def test_a_removed_file_leaves_what_is_known(log: Log) -> None:
    log.add(lines(1, 2))
    assert log.steps() == [1, 2]
    log.path.unlink()
    assert log.steps() == [] and log.anew == 0


def test_a_line_without_end_takes_no_memory_and_stops_nothing(log: Log) -> None:
    log.add(lines(1, 1) + "x" * (3 * CHUNK))
    assert log.steps() == [1]
    log.add("\n" + lines(2, 2))
    assert log.steps() == [2] and log.follower.damaged == 1


def test_much_to_read_comes_in_parts(log: Log) -> None:
    log.add(lines(1, 60_000))
    found: list[int] = []
    parts = 0
    while not found or log.follower.behind:
        found += log.steps(limit=100_000)
        parts += 1
        assert log.follower.offset > 0
    assert found == list(range(1, 60_001)) and parts > 2


def test_a_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", tail=100)
    log.add(lines(1, 5000))
    found = log.steps()
    assert found == list(range(found[0], 5001)) and 3 <= len(found) <= 8
    log.add(lines(5001, 5001))
    assert log.steps() == [5001] and log.follower.damaged == 0


def test_small_files_that_are_not_whole_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    assert read_object(path) == {}
    for text in ("", "[]", '{"a": ', "\0\0"):
        path.write_text(text)
        assert read_object(path) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("nan", None), (float("nan"), None), (None, None)],
)
def test_numbers_are_finite(value: object, expected: float | None) -> None:
    assert number(value) == expected and number(10**400) is None


def test_what_is_not_finite_is_noticed() -> None:
    assert [is_broken(value) for value in ("nan", "-inf", float("inf"), 1.0, None, "text")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert whole(3.0) == 3 and whole("3") is None
