"""The 1000 sequences of five tasks that CALVIN evaluates with.

Each of 192 first states has five or six sequences, drawn at random under the state's number until
they can be done, and all of them are shuffled once. Drawing takes seconds a sequence, so the result
is stored here as a table; `drawn` computes it again.
"""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import islice, product
from typing import NamedTuple

import numpy as np

from workloads.errors import UserError
from workloads.vla.calvin.scenes import scene_of
from workloads.vla.calvin.tasks import TASKS, State

COUNT = 1000
LENGTH = 5
_TABLE = "sequences.csv"
_NAMES = tuple(TASKS)
_PLACES = ("table", "slider_right", "slider_left")


class Sequence(NamedTuple):
    """One of the evaluation's sequences: its initial state, and the tasks in order."""

    initial_state: State
    sequence: tuple[str, ...]

    @property
    def instructions(self) -> list[str]:
        """The instructions for the policy, task by task."""
        return [TASKS[name].instruction for name in self.sequence]

    @property
    def scene_obs(self) -> np.ndarray:
        """The scene for the simulator's reset, float64 [24]."""
        return scene_of(self.initial_state)


def sequences(n: int = COUNT) -> list[Sequence]:
    """The first n of the 1000 official sequences.

    CALVIN's own function, asked for 10, gives ten others: it divides the requested number among the
    states before it shuffles. Raises UserError for fewer than 1 or more than 1000.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= COUNT:
        raise UserError(f"expected 1 to {COUNT} sequences, found {n!r}; give another number")
    states = initial_states()
    return [
        Sequence(dict(states[state]), tuple(_NAMES[task] for task in tasks))
        for state, *tasks in _table()[:n]
    ]


def initial_states() -> list[State]:
    """The 192 initial states, in the order of their numbers.

    One or two blocks lie on the table, the others at different sides of the slider.
    """
    found = []
    for led, bulb, slider, drawer, *blocks in product(
        (0, 1), (0, 1), ("right", "left"), ("closed", "open"), _PLACES, _PLACES, _PLACES
    ):
        red, blue, pink = blocks
        at_sides = [block for block in blocks if block != "table"]
        if len(at_sides) in (1, 2) and len(set(at_sides)) == len(at_sides):
            found.append(
                State(
                    led=led, lightbulb=bulb, slider=slider, drawer=drawer,
                    red_block=red, blue_block=blue, pink_block=pink, grasped=0,
                )
            )  # fmt: skip
    return found


def shared_out() -> list[tuple[int, int]]:
    """For each sequence in the evaluation's order: its state's number, and which of the state's."""
    states = len(initial_states())
    counts = [COUNT // states + (number < COUNT % states) for number in range(states)]
    all_of = [(number, which) for number, count in enumerate(counts) for which in range(count)]
    order = np.random.RandomState(0).permutation(COUNT)
    return [all_of[place] for place in order]


def drawn(number: int, count: int) -> list[tuple[str, ...]]:
    """The first sequences of a state, found by drawing: seconds for each."""
    state = initial_states()[number]
    return list(islice(_drawn(number, state), count))


def _drawn(number: int, state: State) -> Iterator[tuple[str, ...]]:
    random = np.random.RandomState(number)
    categories = [TASKS[name].category for name in _NAMES]
    while True:
        # The same as drawing five without replacement.
        tasks = random.permutation(len(_NAMES))[:LENGTH].tolist()
        if len({categories[task] for task in tasks}) == LENGTH:
            names = tuple(_NAMES[task] for task in tasks)
            if _can_be_done(state, names):
                yield names


def _can_be_done(state: State | None, names: tuple[str, ...]) -> bool:
    for name in names:
        state = None if state is None else TASKS[name].after(state)
    return state is not None


@cache
def _table() -> list[list[int]]:
    text = (files(__package__) / _TABLE).read_text(encoding="ascii")
    return [[int(cell) for cell in line.split(",")] for line in text.splitlines()[1:]]
