"""A reward that fails on one of two ranks: both stop at the same step, and its work is kept."""

import os
from pathlib import Path

import pytest

from tests.smoke.test_grpo_train import GrpoTraining, profile, share_of_early_letters
from tests.support.processes import losses
from workloads.run.integrity import sealed

pytestmark = pytest.mark.fault
WORDS = (
    "parallel.ranks_per_node=2",
    "rewards=[tests.fault.test_rewards:fails_on_one_rank]",
    "checkpoints.every_steps=100",
)
scored: list[str] = []


def fails_on_one_rank(completion: str) -> float:
    """Breaks on rank 1 at step 3, each rank scoring two completions a step."""
    scored.append(completion)
    if os.environ.get("BREAKS") and os.environ["RANK"] == "1" and len(scored) > 4:
        raise ZeroDivisionError("broken")
    return share_of_early_letters(completion)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    """G-F10 on two ranks; going on is as if nothing had been."""
    path = profile(tmp_path, 4, count=9)
    broken = GrpoTraining(path, tmp_path / "out", WORDS, {"BREAKS": "1"}).end(expected=2)
    assert "failed with ZeroDivisionError: broken" in broken.everything()
    assert [step.name for step in sealed(broken.run.checkpoints)] == ["checkpoint-2"]
    again = GrpoTraining(path, tmp_path / "out", [*WORDS, "--resume", "latest"]).end()
    whole = GrpoTraining(path, tmp_path / "whole", WORDS).end()
    assert losses(again.run) == losses(whole.run)
    assert sorted(losses(whole.run)) == [1, 2, 3, 4]
