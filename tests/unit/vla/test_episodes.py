"""Episodes: which of the predicted actions is carried out now."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from workloads.errors import UserError
from workloads.vla.episodes import Execution, PolicyEpisode, act
from workloads.vla.policy import Observation

pytestmark = pytest.mark.unit
CHUNK = 3
SEEN = Observation({}, "go")


class Counting:
    """Predicts 10 x the frame + the place in the chunk; the last number is 1 from frame 2 on."""

    binary = (1,)

    def __init__(self, remembers: bool = True) -> None:
        self.remembers = remembers
        self.calls = 0

    def new_memory(self) -> list[int]:
        return []

    def act(
        self, observations: Sequence[Any], unnorm_key: str | None, memories: Sequence[list[int]]
    ) -> np.ndarray:
        self.calls += 1
        found = []
        for memory in memories:
            memory.append(1)
            now = 10.0 * len(memory)
            found.append(
                [[now + place, 1.0 if len(memory) > 1 else -1.0] for place in range(CHUNK)]
            )
        return np.array(found)


def drive(policy: Any, frames: int, execution: Execution | None = None) -> list[list[float]]:
    execution = execution or Execution()
    episode = PolicyEpisode(policy.new_memory())
    found = [act(policy, [episode], [SEEN], None, execution)[0].tolist() for _ in range(frames)]
    assert episode.frames == frames
    return found


def test_a_policy_that_remembers_is_asked_at_every_frame_and_carries_out_the_newest() -> None:
    policy = Counting()
    assert [row[0] for row in drive(policy, 4)] == [10, 20, 30, 40]
    assert policy.calls == 4


def test_k_actions_of_a_chunk_while_every_frame_is_remembered() -> None:
    policy = Counting()
    found = drive(policy, 5, Execution(2))
    assert [row[0] for row in found] == [10, 11, 30, 31, 50] and policy.calls == 5
    assert [row[0] for row in drive(Counting(), 5, Execution(9))] == [10, 11, 12, 40, 41]


def test_a_policy_without_memory_is_asked_when_its_chunk_is_over() -> None:
    policy = Counting(remembers=False)
    assert [row[0] for row in drive(policy, 5)] == [10, 11, 12, 20, 21]
    assert policy.calls == 2


def test_ensembling_weighs_what_was_predicted_for_this_moment() -> None:
    found = drive(Counting(), 4, Execution(ensemble=0.5))
    weights = np.exp([0, -0.5, -1])
    assert found[0][0] == 10
    assert found[1][0] == pytest.approx(weights[:2] @ [11, 20] / weights[:2].sum())
    assert found[3][0] == pytest.approx(weights @ [22, 31, 40] / weights.sum())
    # What is one of two values stays so: the heavier one, and of equal ones the newest.
    assert [row[1] for row in found] == [-1, -1, -1, 1]  # 1 against e^-0.5 + e^-1
    assert [row[1] for row in drive(Counting(), 2, Execution(ensemble=0))] == [-1, 1]


def test_episodes_go_on_side_by_side() -> None:
    policy = Counting()
    one, other = PolicyEpisode(policy.new_memory()), PolicyEpisode(policy.new_memory())
    act(policy, [one], [SEEN])
    both = act(policy, [one, other], [SEEN, SEEN])
    assert both[:, 0].tolist() == [20, 10] and policy.calls == 2


@pytest.mark.parametrize(
    ("steps", "ensemble", "match"),
    [
        (0, None, "at least 1 step"),
        (None, -1.0, "weight of 0 or more"),
        (None, float("nan"), "weight of 0 or more"),
        (2, 0.1, "one step of a chunk with ensembling"),
    ],
)
def test_what_cannot_be_carried_out(steps: int | None, ensemble: float | None, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Execution(steps, ensemble)
