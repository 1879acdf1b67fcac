"""A stopped and resumed training equals the uninterrupted one, bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.support.processes import ONE_RANK, Training, events, losses, state
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
    part = Training(tmp_path / "part", CASES[case])
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


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path, ["train.max_steps=100000"])
    training.until_step(3)
    training.signal(signal.SIGINT)
    training.signal(signal.SIGINT)
    training.end(expected=3)


def test_a_stop_during_set_up_loses_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.until(lambda: bool(training.run.statuses()), "heartbeat")
    training.signal(signal.SIGTERM)
    training.end(expected=3)
    assert "nothing was lost" in training.console
