"""What a process prints when nobody reads it any more, or the disk is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.processes import lossy_output

pytestmark = pytest.mark.unit
PRINTS = (
    "import sys; from workloads.processes import make_output_lossy; make_output_lossy();"
    "print('one'); print('two', file=sys.stderr); sys.stdin.read();"
    "print('x' * 100_000); print('three', file=sys.stderr); sys.exit(3)"
)


def test_what_a_full_disk_does_not_take_is_lost_and_ends_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    room = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    output = lossy_output(full)
    print("a" * 100_000, file=output)
    os.dup2(room, full)  # some is free again
    print("heard: 日本", file=output)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "heard: 日本\n"
    os.close(full)
    os.close(room)


def test_a_reader_that_has_ended_changes_no_exit_code() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    assert (process.stdout.readline(), process.stderr.readline()) == ("one\n", "two\n")
    for stream in (process.stdout, process.stderr, process.stdin):
        stream.close()
    assert process.wait(60) == 3
