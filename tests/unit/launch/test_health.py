"""Ranks are found by their processes and judged by their heartbeats."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workloads.launch.health import Rank, main, ranks

pytestmark = pytest.mark.unit


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like rank 3 of a run; that its module sleeps is all it does."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    # A variable may hold what is no UTF-8.
    env = {**os.environ, "RANK": "3", "TATARA_RUN": str(tmp_path), "ODD": os.fsdecode(b"\xff")}
    words = [sys.executable, "-c", code, "-m", "workloads.launch.rank"]
    (tmp_path / "status").mkdir()
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, env=env) as process:
        assert process.stdout and process.stdout.readline()  # /proc shows its words only by then
        yield process
        process.kill()


def found(pid: int) -> Rank | None:
    return next((rank for rank in ranks() if rank.pid == pid), None)


def beat(folder: Path, pid: int, seconds_ago: float) -> None:
    status = {"pid": pid, "monotonic": time.monotonic() - seconds_ago}
    (folder / "status" / "3.json").write_text(json.dumps(status))


def test_a_rank_is_found_with_its_run(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    rank = found(worker.pid)
    assert rank is not None
    assert (rank.rank, rank.run) == (3, tmp_path)
    assert 0 <= rank.age < 60


@pytest.mark.parametrize(("seconds", "code"), [(0.0, 0), (30.0, 1)])
def test_the_age_of_the_heartbeat_decides(
    worker: subprocess.Popen[bytes],
    tmp_path: Path,
    seconds: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    beat(tmp_path, worker.pid, seconds)
    only = [rank for rank in ranks() if rank.pid == worker.pid]
    monkeypatch.setattr("workloads.launch.health.ranks", lambda: iter(only))
    assert main(limit=10) == code
    silent = rf"rank 3 \(pid {worker.pid}\): no heartbeat for 3\d s"
    assert re.match(silent if code else "1 ranks", capsys.readouterr().out)


def test_the_heartbeat_of_another_process_does_not_count(
    worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    beat(tmp_path, worker.pid + 1, 1000.0)
    rank = found(worker.pid)
    assert rank is not None and rank.silence() < 60


def test_no_ranks_is_setting_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert list(ranks(tmp_path)) == []
    monkeypatch.setattr("workloads.launch.health.ranks", lambda: iter(()))
    assert main() == 0
    assert capsys.readouterr().out == "no ranks: setting up\n"
