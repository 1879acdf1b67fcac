"""A table with coloured cubes, and the cube to reach.

Everything follows from (seed, number); seeds of demonstrations and of evaluation scenes are
separated by `purpose`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workloads.vla.reach import arm

Purpose = Literal["demonstrations", "evaluation"]
COLOURS = {
    "red": (225, 25, 25),
    "green": (25, 190, 25),
    "blue": (25, 25, 225),
}
# An evaluation scene has a cube of every colour, each equally often the goal. Demonstrations have
# one, two or three cubes, and mostly a red goal: a small model first learns to find one colour, and
# then to use the instruction. With equal goals it moves between the cubes for very long.
CUBES = 3
_CUBES_SHOWN = (0.2, 0.3, 0.5)  # share of the demonstrations with one, two, three
_ASKED = {"red": 0.5, "green": 0.3, "blue": 0.2}
CUBE = 0.06  # edge, m
# Area of cubes: distance from the robot's axis in m, angle in rad. All of it can be reached.
NEAR, FAR, SIDE = 0.20, 0.36, 0.85
APART = 0.12  # between the middles of two cubes, m
# Largest offset of the start from home, rad.
START_SPREAD = np.array([0.5, 0.15, 0.0, 0.2, 0.0, 0.2, 0.0, 0.1])
_RECALL = "reach the cube that was lit"
_PURPOSES = {"demonstrations": 0, "evaluation": 1}
# For recall, cubes lie near the corners of a triangle, whose middle, where a policy
# without memory moves, is near none of them. x and y in m.
CORNERS = np.array([[0.24, 0.17], [0.24, -0.17], [0.36, 0.0]])
_OFF_CORNER = 0.025  # m, largest offset


@dataclass(frozen=True)
class Scene:
    """colours: one a cube; places: their middles on the table, [cubes, 2] in m; start [8] in rad.

    The first cube is the goal. told: an instruction that does not name the goal.
    """

    colours: tuple[str, ...]
    places: np.ndarray
    start: np.ndarray
    told: str | None = None

    @property
    def instruction(self) -> str:
        return self.told or instruction(self.colours[0])

    @property
    def goal(self) -> np.ndarray:
        """The middle of the named cube's upper face, [3] in m."""
        return self.top(0)

    def top(self, cube: int) -> np.ndarray:
        """The middle of a cube's upper face, [3] in m."""
        return np.array([*self.places[cube], CUBE])


def instruction(colour: str) -> str:
    """The instruction for the robot."""
    return f"reach the {colour} cube"


def scene(seed: int, number: int, purpose: Purpose) -> Scene:
    """The scene of a number: the same for the same arguments."""
    random = np.random.default_rng([seed, _PURPOSES[purpose], number])
    judged = purpose == "evaluation"
    cubes = CUBES if judged else int(random.choice(CUBES, p=_CUBES_SHOWN)) + 1
    named = str(random.choice(list(COLOURS), p=None if judged else list(_ASKED.values())))
    others = [colour for colour in COLOURS if colour != named]
    colours = (named, *random.permutation(others)[: cubes - 1].tolist())
    places = _places(random, cubes)
    start = arm.HOME + random.uniform(-1, 1, arm.JOINTS) * START_SPREAD
    return Scene(colours, places, arm.within_limits(start))


def recall_scene(seed: int, number: int, purpose: Purpose) -> Scene:
    """A scene whose goal is shown at first and has to be remembered.

    A cube of every colour, each equally often the goal, and an instruction that names none.
    """
    random = np.random.default_rng([seed, _PURPOSES[purpose], number, 1])
    colours = tuple(str(colour) for colour in random.permutation(list(COLOURS)))
    off = random.uniform(-_OFF_CORNER, _OFF_CORNER, CORNERS.shape)
    places = (CORNERS + off)[random.permutation(len(CORNERS))]
    start = arm.HOME + random.uniform(-1, 1, arm.JOINTS) * START_SPREAD
    return Scene(colours, places, arm.within_limits(start), _RECALL)


def _places(random: np.random.Generator, cubes: int) -> np.ndarray:
    """Positions of the cubes [cubes, 2], drawn evenly over the area until none is near another."""
    while True:
        distance = np.sqrt(random.uniform(NEAR**2, FAR**2, cubes))
        angle = random.uniform(-SIDE, SIDE, cubes)
        places = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
        gaps = np.linalg.norm(places[:, None] - places[None], axis=2)
        if gaps[~np.eye(cubes, dtype=bool)].min(initial=np.inf) >= APART:
            return places
