"""Which ranks are alive, and why one is not: real heartbeats, real processes, any clock."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.launch import health
from workloads.monitor.reading.clock import Now
from workloads.monitor.reading.ranks import Heartbeats, RankStatus
from workloads.processes import is_stopped

pytestmark = pytest.mark.unit


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


@pytest.fixture
def process(written: Written) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that looks like rank 1 of the run, and waits."""
    words = [sys.executable, "-c", "import sys; sys.stdin.read()", "workloads.launch.rank"]
    env = {**os.environ, "RANK": "1", "TATARA_RUN": str(written.run.path)}
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE) as found:
        # The kernel lets go of the parent a moment before the child's arguments can be read.
        until = time.monotonic() + 20
        while all(rank.pid != found.pid for rank in health.ranks()) and time.monotonic() < until:
            time.sleep(0.01)
        yield found
        found.kill()


def look(written: Written, now: Now | None = None) -> dict[int, RankStatus]:
    return {rank.rank: rank for rank in Heartbeats(written.run.path).read(now or Now())}


def later(now: Now, seconds: float) -> Now:
    return replace(now, monotonic=now.monotonic + seconds, wall=now.wall + seconds)


def test_fresh_heartbeats_are_ok(written: Written) -> None:
    now = Now()
    written.beat(0)
    written.beat(10, node=3, step=8)
    found = look(written, now)
    assert list(found) == [0, 10]
    assert {item.state for item in found.values()} == {"ok"}
    assert (found[10].node, found[10].step, found[10].here, found[10].sure) == (3, 8, True, True)
    assert found[0].memory == 5 << 20 and found[0].age < 2


def test_a_suspended_rank_is_named(written: Written, process: "subprocess.Popen[bytes]") -> None:
    written.beat(0)
    written.beat(1, ago=12, pid=process.pid)
    now = Now()
    assert look(written, now)[1].state == "stalled"  # it runs, and is silent
    process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 20
    while not is_stopped(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    found = look(written, now)
    assert (found[0].state, found[1].state) == ("ok", "suspended")
    assert found[1].age == pytest.approx(12, abs=2)
    process.send_signal(signal.SIGCONT)


def test_a_suspended_rank_in_a_container_is_found_by_its_number_outside(
    written: Written, process: "subprocess.Popen[bytes]"
) -> None:
    written.beat(1, ago=12, pid=7, host="demo-worker")
    process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 20
    while not is_stopped(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    found = look(written)[1]
    assert (found.state, found.pid, found.host) == ("suspended", process.pid, "demo-worker")
    process.send_signal(signal.SIGCONT)


def test_a_killed_rank_is_gone(written: Written, process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    written.beat(1, ago=6, pid=process.pid)
    assert look(written)[1].state == "gone"


def test_the_number_of_another_program_is_not_the_rank(written: Written) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        written.beat(1, ago=6, pid=other.pid)
        assert look(written)[1].state == "gone"
        other.kill()


def test_ended_ranks_keep_their_end(written: Written) -> None:
    written.beat(0, ago=500, phase="done", code=0)
    written.beat(1, ago=500, phase="failed", code=1, reason="boom")
    written.beat(2, ago=500, phase="stopped", code=3)
    found = look(written)
    assert [item.state for item in found.values()] == ["done", "failed", "stopped"]
    assert found[1].reason == "boom"


def test_a_wall_clock_that_jumps_makes_nobody_old(written: Written) -> None:
    written.beat(0)
    for jump in (-86_400.0, 86_400.0):
        now = Now()
        found = look(written, replace(now, wall=now.wall + jump))[0]
        assert found.state == "ok" and found.age < 2


def test_another_machine_is_believed_once_its_heart_was_seen_to_beat(written: Written) -> None:
    far = {"host": "elsewhere", "monotonic": 1e9}
    written.beat(0, ago=300, **far)  # its clock is five minutes off, or it is dead
    hearts, now = Heartbeats(written.run.path), Now()
    first = hearts.read(now)[0]
    assert (first.state, first.sure, first.here) == ("late", False, False)
    assert first.age == pytest.approx(300, abs=2)
    written.beat(0, ago=299, **(far | {"beat": 10}))
    second = hearts.read(later(now, 1))[0]
    assert (second.state, second.sure) == ("ok", True) and second.age == 0


def test_another_machine_is_stalled_once_it_was_watched_in_silence(written: Written) -> None:
    written.beat(0, ago=2, host="elsewhere", monotonic=1e9)
    hearts, now = Heartbeats(written.run.path), Now()
    assert hearts.read(now)[0].state == "ok"
    assert hearts.read(later(now, 8))[0].state == "late"
    assert hearts.read(later(now, 11))[0].state == "stalled"


def test_a_short_watch_is_enough_where_the_file_is_old(written: Written) -> None:
    written.beat(0, ago=600, host="elsewhere", monotonic=1e9)
    hearts, now = Heartbeats(written.run.path), Now()
    assert not hearts.read(now)[0].sure
    found = hearts.read(later(now, 2.4))[0]
    assert (found.state, found.sure) == ("stalled", True)


def test_a_machine_that_was_started_again_is_not_this_one(written: Written) -> None:
    written.beat(0, ago=400, monotonic=time.monotonic() + 5000)
    found = look(written)[0]
    assert not found.here and found.age == pytest.approx(400, abs=2)


def test_the_rank_that_holds_up_the_others_is_named(written: Written) -> None:
    hearts, now = Heartbeats(written.run.path), Now()
    states: list[str] = []
    for seconds in (0, 40, 80):
        for rank, progress in ((0, 20), (1, 19)):
            moment = now.monotonic + seconds
            written.beat(rank, beat=seconds, progress=progress, monotonic=moment)
        found = hearts.read(later(now, seconds), seconds_per_step=0.5)
        states.append(" ".join(item.state for item in found))
    assert states == ["ok ok", "ok ok", "ok stuck"]


@pytest.mark.parametrize(("phase", "step"), [("saving", 5), ("evaluating", 5), ("training", 0)])
def test_long_work_without_a_word_is_no_trouble(written: Written, phase: str, step: int) -> None:
    hearts, now = Heartbeats(written.run.path), Now()
    for seconds in (0, 300):
        moment = now.monotonic + seconds
        written.beat(0, beat=seconds, phase=phase, step=step, monotonic=moment)
        found = hearts.read(later(now, seconds))
    assert found[0].state == "ok"


def test_slow_steps_are_given_their_time(written: Written) -> None:
    hearts, now = Heartbeats(written.run.path), Now()
    for seconds in (0, 300):
        written.beat(0, beat=seconds, monotonic=now.monotonic + seconds)
        found = hearts.read(later(now, seconds), seconds_per_step=30.0)
    assert found[0].state == "ok"
    assert found[0].idle == pytest.approx(300)  # a difference of two clock readings


def test_half_written_and_odd_heartbeats_are_passed_over(written: Written) -> None:
    written.beat(0)
    folder = written.run.path / "status"
    (folder / "1.json").write_text('{"rank": 1, "pha')
    (folder / ".2.json.77").write_text("{}")
    (folder / "notes.json").write_text("{}")
    (folder / "3.json").write_text(json.dumps({"phase": 7, "pid": "x", "step": "nan"}))
    found = look(written)
    assert list(found) == [0, 3] and found[3].phase == "" and found[3].step == 0
