"""Tasks solved in a scene, and the success rates of an evaluation."""

from collections.abc import Sequence

import numpy as np

from workloads.errors import UserError
from workloads.vla.calvin.sequences import LENGTH

# By index in scene_obs: (task, index, distance to move, m).
_DOORS = (
    ("move_slider_left", 0, 0.15),
    ("move_slider_right", 0, -0.15),
    ("open_drawer", 1, 0.12),
    ("close_drawer", 1, -0.12),
)
_LIGHTS = (("lightbulb", 4), ("led", 5))


def success_rates(solved: Sequence[int]) -> tuple[list[float], float]:
    """Share of sequences with at least 1 to 5 solved tasks in a row, and the mean length.

    solved: for each sequence how many tasks were done before the first failure. Raises UserError
    for a count below 0 or over 5.
    """
    if not len(solved) or any(not 0 <= count <= LENGTH for count in solved):
        raise UserError(f"expected counts from 0 to {LENGTH}, found {list(solved)}; check them")
    counts = np.asarray(solved)
    shares = [float((counts >= least).mean()) for least in range(1, LENGTH + 1)]
    return shares, float(counts.mean())


def seen_tasks(start: np.ndarray, end: np.ndarray) -> set[str]:
    """The tasks of doors and lights between two scenes, `scene_obs` float [24] each.

    Tasks of blocks depend on contacts, which only the simulator knows.
    """
    moved = np.asarray(end, np.float64) - np.asarray(start, np.float64)
    doors = {
        task
        for task, place, least in _DOORS
        if (moved[place] > least if least > 0 else moved[place] < least)
    }
    lights = {
        f"turn_{'on' if moved[place] > 0 else 'off'}_{light}"
        for light, place in _LIGHTS
        if (start[place] > 0.5) != (end[place] > 0.5)
    }
    return doors | lights
