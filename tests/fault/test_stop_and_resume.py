"""A stopped and resumed training equals the uninterrupted one, bit for bit."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.processes import ONE_RANK, PATIENCE, Training, events, losses, rows, state
from tests.support.wandb_files import records
from workloads.run import verify_checkpoint
from workloads.run.integrity import sealed

pytestmark = pytest.mark.fault

CASES = {
    "fsdp2": (),
    "packed": (*ONE_RANK, "data.packing=true", "train.global_batch_size=8", "train.workers=1"),
    "ddp": ("parallel.strategy=ddp", "train.global_batch_size=16"),
    "single": ONE_RANK,
}
SLOW = ("ddp", "single")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def test_resumed_equals_uninterrupted(tmp_path: Path, case: str) -> None:
    whole = Training(tmp_path / "whole", CASES[case]).end()
    part = Training(tmp_path / "part", CASES[case], fault="wait:6:0")
    part.until_step(5)
    part.signal(signal.SIGTERM)
    part.end(expected=3)
    stopped_at = events(part.run, "stop requested")[0]["step"]
    assert f"checkpoint-{stopped_at} saved" in part.console
    resumed = Training(tmp_path / "part", CASES[case], resume=True).end()
    assert resumed.run.path == part.run.path
    assert losses(resumed.run) == losses(whole.run)
    assert state(resumed.run) == state(whole.run)
    assert len(losses(whole.run)) == 24


@pytest.mark.slow
def test_a_run_that_is_done_takes_no_further_step_when_it_is_resumed(tmp_path: Path) -> None:
    """Done in the middle of an epoch; before, its last checkpoint loses its seal and is remade."""
    words = [*ONE_RANK, "train.max_steps=10", "optim.schedule=constant"]
    whole = Training(tmp_path, words).end()
    before = state(whole.run)
    (sealed(whole.run.checkpoints)[-1] / "complete.json").unlink()
    remade = Training(tmp_path, words, resume=True).end()
    assert "going on from checkpoint-8" in remade.console
    assert state(remade.run) == before
    done = Training(tmp_path, words, resume=True).end()
    assert "going on from checkpoint-10" in done.console
    assert max(losses(done.run)) == 10 and state(done.run) == before


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


LONG = ("train.max_steps=100000", "checkpoints.every_steps=100000")


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, saved: bool) -> None:
    """With a rank that cannot agree to stop; 3 only where an older checkpoint is there."""
    training = Training(tmp_path, LONG[:1] if saved else LONG)
    training.until_step(9)
    training.signal_rank(0, signal.SIGSTOP)
    while training.process.poll() is None:  # the kernel makes one of two that come close together
        training.signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.process.wait(0.2)
    training.end(expected=3 if saved else 130)
    assert "stopped at once" in training.console
    assert ("--resume" in training.console) is saved


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (ONE_RANK, False),
        (ONE_RANK, True),
        ((*ONE_RANK, "train.workers=1"), True),
        ((), True),
    ],
    ids=["one", "one-twice", "workers-twice", "nodes-twice"],
)
def test_a_stop_to_every_process_saves(tmp_path: Path, words: Sequence[str], again: bool) -> None:
    """O-S1: as Slurm and systemd send it."""
    training = Training(tmp_path, [*words, *LONG])
    training.until_step(2)
    training.signal_tree(signal.SIGTERM)
    if again:
        training.signal_tree(signal.SIGTERM)
    training.end(expected=3)
    (checkpoint,) = sealed(training.run.checkpoints)
    assert verify_checkpoint(checkpoint) == []
    assert f"{checkpoint.name} saved" in events(training.run, "stopped")[0]["reason"]


def test_a_terminal_that_closes_is_a_stop(tmp_path: Path) -> None:
    """As when a connection breaks: SIGHUP, and an output that takes no word any more."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    training = Training(tmp_path, [*ONE_RANK, *LONG], terminal=theirs)
    os.close(theirs)

    def reached() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # else the terminal is full
        return any(rows(path) for path in tmp_path.glob("*/*/metrics.jsonl"))

    training.until(reached, "step")
    os.close(ours)
    training.end(expected=3)
    (checkpoint,) = sealed(training.run.checkpoints)
    assert verify_checkpoint(checkpoint) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["at once", "run", "heartbeat"])
@pytest.mark.parametrize("tree", [False, True], ids=["supervisor", "tree"])
def test_a_stop_before_there_was_anything_to_save(
    tmp_path: Path, number: int, code: int, moment: str, tree: bool
) -> None:
    """O-A5: from the first moment of the process, and never 3 or 75."""
    training = Training(tmp_path, LONG)
    if moment != "at once":
        training.until(lambda: bool(training.run.statuses()) or moment == "run", "heartbeat")
    elif number == signal.SIGINT:  # an interpreter that still starts makes 1 of it by itself
        training.until(lambda: catches(training.process.pid, signal.SIGTERM), "handler")
    (training.signal_tree if tree else training.signal)(number)
    training.end(expected=code)
    assert "Traceback" not in training.console or moment == "at once"
    assert "go on with" not in training.console
    if moment == "heartbeat":
        assert "nothing was lost" in training.console
        assert events(training.run, "stopped")[0]["code"] == code


@pytest.mark.parametrize("fault", ["unborn:0:1", "absent:0:1"])
def test_a_stop_does_not_wait_for_ranks_that_wait(tmp_path: Path, fault: str) -> None:
    """One rank ends at once; torch would have the other, or its agent, wait for it for minutes."""
    training = Training(tmp_path, LONG, fault=fault)
    begun = [0] if fault.startswith("unborn") else [0, 1]

    def waiting() -> bool:
        statuses = training.run.statuses()
        phase = [status["phase"] for status in statuses.values()]
        return sorted(statuses) == begun and (len(begun) < 2 or set(phase) == {"preparing"})

    training.until(waiting, "ranks that wait")
    tree = psutil.Process(training.process.pid).children(recursive=True)
    asked = time.monotonic()
    training.signal_tree(signal.SIGINT)
    training.end(expected=130)
    assert time.monotonic() - asked < PATIENCE / 4, training.everything()
    assert "nothing was lost" in training.console
    _, left = psutil.wait_procs(tree, timeout=30)
    assert not left, training.everything()


def test_a_stop_before_the_first_step_of_a_resumed_run_keeps_its_checkpoint(tmp_path: Path) -> None:
    Training(tmp_path, [*ONE_RANK, "train.max_steps=8"]).end()
    again = Training(tmp_path, [*ONE_RANK, *LONG], resume=True)
    again.until(lambda: len(events(again.run, "started")) > 1, "second start")
    again.signal_tree(signal.SIGTERM)
    again.end(expected=3)
    assert "--resume" in again.console


@pytest.mark.slow
def test_a_killed_and_resumed_offline_run_is_one_for_wandb(tmp_path: Path) -> None:
    """E-10: killed, stopped and gone on with; each step is once in the one folder to sync."""
    words = [*ONE_RANK, "tracking.wandb=offline", "checkpoints.every_steps=4"]
    killed = Training(tmp_path, [*words, "train.max_steps=100000"])
    killed.until_step(6)
    killed.signal_tree(signal.SIGKILL)
    killed.end(expected=137)
    stopped = Training(tmp_path, [*words, "train.max_steps=100000"], resume=True)
    stopped.until_step(10)
    stopped.signal(signal.SIGTERM)
    stopped.end(expected=3)
    (last,) = {row["step"] for row in events(stopped.run, "stop requested")}
    done = Training(tmp_path, [*words, f"train.max_steps={last + 2}"], resume=True).end()

    command = [Path(sys.executable).with_name("wandb"), "sync", "--dry-run"]
    said = subprocess.run(command, cwd=done.run.path, capture_output=True, text=True)
    assert "Would sync 1 run(s):" in said.stdout + said.stderr
    (folder,) = done.run.path.glob("wandb/offline-run-*")
    found = list(records(next(folder.glob("*.wandb"))))
    (run,) = [record.run for record in found if record.HasField("run")]
    assert run.run_id == f"demo-{done.run.id}" and run.run_group == "demo"
    curve = {
        record.history.step.num: json.loads(item.value_json)
        for record in found
        for item in record.history.item
        if "loss" in (item.key, *item.nested_key)
    }
    assert curve == pytest.approx({step: facts[0] for step, facts in losses(done.run).items()})
    assert list(curve) == list(range(1, last + 3))
    assert sum(record.HasField("history") for record in found) == len(curve) + 1, "step 0 as well"
