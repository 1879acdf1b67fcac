"""Ranks die, hang and go wrong; files are damaged: what the user is left with."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import (
    ONE_RANK,
    ROOT,
    SHORT,
    Training,
    Trainings,
    events,
    losses,
    rows,
    state,
)
from tests.support.waiting import has_ended, until
from workloads.run import verify_checkpoint
from workloads.run.integrity import sealed

pytestmark = pytest.mark.fault


def test_a_killed_rank_is_named_and_the_run_finishes_by_itself(
    tmp_path: Path, begin: Trainings
) -> None:
    whole = begin(tmp_path / "whole").end()
    hurt = begin(tmp_path / "hurt", fault="kill:11:1").end()
    (restart,) = events(hurt.run, "restarted")
    assert "rank 1 was ended by SIGKILL" in restart["reason"]
    assert state(hurt.run) == state(whole.run)
    assert losses(hurt.run) == losses(whole.run)


def test_a_flipped_byte_sends_the_run_to_the_checkpoint_before(
    tmp_path: Path, begin: Trainings
) -> None:
    first = begin(tmp_path, [*ONE_RANK, "train.max_steps=16"]).end()
    newest = sealed(first.run.checkpoints)[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert verify_checkpoint(newest)
    again = begin(tmp_path, [*ONE_RANK, "train.max_steps=16"], resume=True).end()
    assert "checkpoint-16 is damaged" in again.console
    assert "going on from checkpoint-8" in again.console
    assert (again.run.checkpoints / "damaged-checkpoint-16").is_dir()
    assert verify_checkpoint(again.run.checkpoints / "checkpoint-16") == []


def test_a_nan_on_one_rank_is_never_applied(tmp_path: Path, begin: Trainings) -> None:
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    training = begin(tmp_path, fault="nan:7:1").end()
    (event,) = events(training.run, "nonfinite")
    assert event["step"] == 7 and len(event["rows_by_rank"][1]) == 4
    assert all(begin.place in place for place in event["places_by_rank"][1])
    assert "step 7: non-finite loss or gradient; the step was not applied" in training.console
    newest = sealed(training.run.checkpoints)[-1]
    dcp_to_torch_save(newest / "pytorch_model_fsdp_0", tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["model"]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    after = [row["loss"] for row in rows(training.run.metrics) if row["step"] > 7 and "loss" in row]
    assert len(after) == 17 and all(isinstance(loss, float) for loss in after)


def test_a_users_mistake_on_one_rank_ends_all_without_a_restart(tmp_path: Path) -> None:
    training = Training(tmp_path, fault="exit2:3:1").end(expected=2)
    assert "expected a good row, found a bad one; fix it" in training.console
    assert "Traceback" not in training.console
    assert not events(training.run, "restarted")


@pytest.mark.slow
def test_a_suspended_rank_is_named_before_torch_gives_up(tmp_path: Path) -> None:
    training = Training(tmp_path, ["parallel.hang_timeout=10"], fault="suspend:4:1").end()
    (restart,) = events(training.run, "restarted")
    assert re.search(r"rank 1 \(node 1, pid \d+, suspended\) hangs", restart["reason"])


@pytest.mark.slow
def test_a_rank_that_hangs_alone_is_told_from_those_that_wait(tmp_path: Path) -> None:
    training = Training(tmp_path, ["parallel.hang_timeout=10"], fault="hang:5:1").end()
    (restart,) = events(training.run, "restarted")
    assert "rank 1" in restart["reason"] and "no progress" in restart["reason"]
    log = (training.run.path / "logs" / "1-1.log").read_text()
    assert "strike" in log, "its stack shows where it hangs"


def test_gpu_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    training = Training(tmp_path, ONE_RANK, fault="oom:3:0").end(expected=1)
    assert "out of memory" in training.console
    assert training.console.count("train.") + training.console.count("adapter.") >= 3
    assert events(training.run, "oom")


@pytest.mark.slow
def test_out_of_memory_may_go_on_with_half_the_micro_batch(tmp_path: Path) -> None:
    """At the same global batch: every step has the rows that it would have had."""
    words = ["parallel.nodes=1", "parallel.ranks_per_node=2", "train.on_out_of_memory=halve"]
    whole = Training(tmp_path / "whole", words).end()
    hurt = Training(tmp_path / "hurt", words, fault="oom:11:1").end()
    (restart,) = events(hurt.run, "restarted")
    assert "rank 1 is out of memory" in restart["reason"]
    assert "going on from checkpoint-8" in hurt.console
    names = ("per_device_batch_size", "accumulation_steps")
    starts = [tuple(event[name] for name in names) for event in events(hurt.run, "training")]
    assert starts == [(4, 1), (2, 2)]
    found, expected = losses(hurt.run), losses(whole.run)
    assert found.keys() == expected.keys()
    for step, (loss, norm, *_) in expected.items():
        assert found[step][:2] == pytest.approx((loss, norm), rel=1e-3), step


def test_the_second_of_two_runs_in_one_folder_is_refused(tmp_path: Path) -> None:
    first = Training(tmp_path, [*ONE_RANK, "train.max_steps=100000"], env={"RUN_ID": "same"})
    first.until_step(1)
    second = subprocess.run(
        [sys.executable, "-m", "workloads.cli", "train", "profiles/demo.yaml", *SHORT, *ONE_RANK],
        cwd=ROOT,
        env={"TATARA_OUTPUTS": str(tmp_path), "RUN_ID": "same", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert f"belongs to process {first.process.pid}" in second.stderr
    first.signal(signal.SIGTERM)
    first.end(expected=3)


@pytest.mark.slow
def test_killing_the_supervisor_leaves_no_orphans(tmp_path: Path) -> None:
    training = Training(tmp_path, ["train.max_steps=100000"])
    training.until_step(3)
    pids = [status["pid"] for status in training.run.statuses().values()]
    training.process.kill()
    training.process.wait()
    until(lambda: all(map(has_ended, pids)))
