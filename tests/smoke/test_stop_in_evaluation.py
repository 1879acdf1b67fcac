"""A stop that comes during an evaluation cuts it short, and the step before it is saved."""

import signal
from pathlib import Path

import pytest

from tests.smoke.test_grpo_train import profile
from tests.support.inline import Trained, as_one_rank, train_inline
from tests.support.processes import ONE_RANK, SHORT
from workloads.run import verify_checkpoint
from workloads.run.events import Phase
from workloads.run.integrity import sealed
from workloads.run.session import Session

pytestmark = pytest.mark.smoke

LLM = (*SHORT, *ONE_RANK, "evaluation.every_steps=2", "checkpoints.every_steps=100")
GRPO = ("evaluation.rows=3", "evaluation.every_steps=2", "checkpoints.every_steps=100")


@pytest.fixture
def stops_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The evaluation, counted from 1, at whose beginning a stop comes."""
    as_one_rank(monkeypatch)
    wanted, begun, enter = [1], [0], Session.enter

    def entering(session: Session, name: Phase) -> None:
        enter(session, name)
        begun[0] += name == Phase.EVALUATING
        if begun == wanted:
            session.stop_signal = signal.SIGTERM

    monkeypatch.setattr(Session, "enter", entering)
    return wanted


def has_saved(trained: Trained, step: int) -> None:
    assert f"checkpoint-{step} saved" in str(trained.error)
    (checkpoint,) = sealed(trained.run.checkpoints)
    assert checkpoint.name == f"checkpoint-{step}" and verify_checkpoint(checkpoint) == []
    (asked,) = [
        row for row in trained.lines(trained.run.events) if row["event"] == "stop requested"
    ]
    assert asked["step"] == step == trained.rows[-1]["step"]


def test_a_language_models_held_out_loss(tmp_path: Path, stops_at: list[int]) -> None:
    """O-S1: evaluations may take longer than a scheduler waits."""
    stopped = train_inline(
        Path("profiles/demo.yaml"), tmp_path / "run", *LLM, "evaluation.before=false"
    )
    has_saved(stopped, 2)
    assert not [row for row in stopped.lines(stopped.run.events) if row["event"] == "evaluated"]


def test_before_the_first_step(tmp_path: Path, stops_at: list[int]) -> None:
    """O-A5: nothing was there to save."""
    stopped = train_inline(Path("profiles/demo.yaml"), tmp_path / "run", *LLM)
    assert "nothing was lost" in str(stopped.error)
    assert not stopped.run.metrics.exists() and not sealed(stopped.run.checkpoints)


def test_held_out_rewards(tmp_path: Path, stops_at: list[int]) -> None:
    """O-S1: the first evaluation is the one before the training."""
    stops_at[0] = 2
    has_saved(train_inline(profile(tmp_path, 6, count=30), tmp_path / "run", *GRPO), 2)
