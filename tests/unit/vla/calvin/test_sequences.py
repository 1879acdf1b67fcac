"""CALVIN's sequences: the table is what drawing gives, and the rules hold."""

import numpy as np
import pytest

from workloads.errors import UserError
from workloads.vla.calvin import seen_tasks, sequences, success_rates
from workloads.vla.calvin.sequences import drawn, initial_states, shared_out
from workloads.vla.calvin.tasks import TASKS

pytestmark = pytest.mark.unit


def test_the_table_is_what_drawing_gives() -> None:
    """Of the states whose first sequences are found soonest."""
    table = sequences(1000)
    place = {key: number for number, key in enumerate(shared_out())}
    for state in (16, 22, 160, 181, 70):
        found = table[place[state, 0]]
        assert found.initial_state == initial_states()[state]
        assert [found.sequence] == drawn(state, 1)


def test_every_sequence_can_be_done() -> None:
    found = sequences(1000)
    assert len({(str(item.initial_state), item.sequence) for item in found}) == 1000
    for item in found:
        state, categories = item.initial_state, set()
        for name in item.sequence:
            after = TASKS[name].after(state)
            assert after is not None
            state = after
            categories.add(TASKS[name].category)
        assert len(categories) == 5


def test_fewer_are_the_first() -> None:
    assert sequences(10) == sequences(1000)[:10] and len(initial_states()) == 192
    found = sequences(2)
    found[0].initial_state["led"] = 7  # a caller's changes stay the caller's
    assert sequences(1)[0].initial_state["led"] != 7


@pytest.mark.parametrize("count", [0, -1, 1001, True, 2.5])
def test_no_other_number(count: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 1000 sequences"):
        sequences(count)


def test_a_task_that_may_mean_two_blocks_cannot_be_done() -> None:
    state = initial_states()[0] | {"grasped": 1, "red_block": "grasped"}
    both = state | {"blue_block": "table", "pink_block": "table"}
    assert TASKS["stack_block"].after(both) is None
    one = TASKS["stack_block"].after(both | {"pink_block": "drawer"})
    assert one is not None and one["blue_block"] == "stacked_bottom" and one["grasped"] == 0


def test_figures() -> None:
    assert success_rates([5, 0]) == ([0.5] * 5, 2.5)
    for counts in ([], [6], [-1]):
        with pytest.raises(UserError, match="expected counts from 0 to 5"):
            success_rates(counts)
    still = np.zeros(24)
    moved = still.copy()
    moved[1], moved[5] = 0.12, 1.0
    assert seen_tasks(still, moved) == {"turn_on_led"}  # exactly the threshold is too little
