"""Signs that a run cannot learn; case G-F2."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.grpo.test_config import config
from workloads.grpo import learning_signal as signs

pytestmark = pytest.mark.unit


def rows(count: int, **metrics: Any) -> list[dict[str, float]]:
    """Rows with the same values, or with a value for each."""
    return [
        {"reward": 0.5 + 0.01 * (place % 7)}
        | {name: one[place] if isinstance(one, list) else one for name, one in metrics.items()}
        for place in range(count)
    ]


def names(found: list[dict[str, float]], **changes: Any) -> list[str]:
    profile = config(**changes)
    return [sign.name for check in signs.CHECKS if (sign := check(found, profile))]


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (rows(3, frac_reward_zero_std=1.0), "no spread"),
        (rows(3, **{"completions/clipped_ratio": 1.0}), "all cut"),
        (rows(10, kl=[0.0, 0.01, 0.01, 0.01, 0.02, 1.0, 1.1, 1.2, 1.3, 1.4]), "KL ran away"),
        (rows(10, entropy=[1.0] * 5 + [0.02] * 5), "entropy collapsed"),
        (rows(10, **{"completions/mean_length": [200.0] * 5 + [9.0] * 5}), "length collapsed"),
        (rows(20, reward=0.25), "reward flat"),
    ],
)
def test_each_sign_within_twenty_steps(found: list[dict[str, float]], name: str) -> None:
    assert names(found) == [name]


@pytest.mark.parametrize(
    "found",
    [
        rows(20),
        rows(2, frac_reward_zero_std=1.0),
        rows(20, frac_reward_zero_std=[1.0, 1.0, 0.5] * 7),
        rows(20, **{"completions/clipped_ratio": 0.9}),
        rows(10, kl=[0.0, 1e-4, 1e-4, 1e-4, 1e-4, 0.1, 0.2, 0.2, 0.2, 0.2]),
        # Certain of what it says, and groups still differ.
        rows(10, entropy=[1.0] * 5 + [0.02] * 5, frac_reward_zero_std=0.3),
        rows(10, **{"completions/mean_length": [12.0] * 5 + [1.0] * 5}),
        rows(19, reward=0.25),
    ],
)
def test_a_run_that_learns_is_left_alone(found: list[dict[str, float]]) -> None:
    assert names(found) == []


@pytest.mark.parametrize(
    ("reward", "change"),
    [(0.0, "no completion earned anything"), (2.0, "every completion earned everything")],
)
def test_the_change_follows_from_what_is_earned(reward: float, change: str) -> None:
    found = [{"reward": reward, "frac_reward_zero_std": 1.0}] * 3
    sign = signs.no_spread(found, config())
    assert sign is not None and sign.change.startswith(change)


def test_rows_that_are_means_over_steps_count_as_these() -> None:
    """G-F2: with train.log_every=10 the third row would be step 30."""
    seldom = {"train": {"log_every": 10}}
    assert names(rows(1, frac_reward_zero_std=1.0), **seldom) == ["no spread"]
    (sign,) = (signs.all_cut(rows(1, **{"completions/clipped_ratio": 1.0}), config(**seldom)),)
    assert sign is not None and sign.seen.startswith("in the last 10 steps all completions")
    assert names(rows(4, reward=0.25), **seldom) == []  # two equal means are no flat reward
    assert names(rows(5, reward=0.25), **seldom) == ["reward flat"]
    often = {"train": {"log_every": 2}}
    assert names(rows(1, frac_reward_zero_std=1.0), **often) == []
    assert names(rows(2, frac_reward_zero_std=1.0), **often) == ["no spread"]


def test_the_row_of_the_first_step_alone_does_not_count_as_several() -> None:
    told: list[str] = []
    session: Any = SimpleNamespace(report=told.append, event=lambda *_, **__: None)
    signal = signs.LearningSignal(config(train={"log_every": 2}), session)
    for step in (1, 2, 4):
        signal.take(step, {"reward": 0.0, "frac_reward_zero_std": 1.0})
        assert len(told) == (step == 4)
    assert told[0].startswith("step 4: this run may not learn: in the last 4 steps no group")


def test_rewards_that_weigh_less_than_nothing_were_not_all_earned() -> None:
    rewards = [{"name": "format", "weight": -1.0}]
    found = [{"reward": 0.0, "frac_reward_zero_std": 1.0}] * 3
    sign = signs.no_spread(found, config(rewards=rewards))
    assert sign is not None and sign.change.startswith("no completion earned anything")


def test_masked_completions_that_are_all_cut_leave_nothing(tmp_path: Any) -> None:
    sign = signs.all_cut(
        rows(3, **{"completions/clipped_ratio": 1.0}), config(grpo={"objective": "dapo"})
    )
    assert sign is not None and "leaves nothing to learn from" in sign.change
