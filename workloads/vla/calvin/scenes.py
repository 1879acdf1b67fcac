"""Scenes for the simulator's reset, from initial states of CALVIN's evaluation."""

from math import pi

import numpy as np

from workloads.vla.calvin.tasks import State

# xyz, Euler angles, gripper width, seven joints, gripper: the same for every sequence.
ROBOT_OBS = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
_IN_SLIDER = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_ON_TABLE = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
_SLIDER, _DRAWER, _SWITCH, _BULB, _LED = 0, 1, 3, 4, 5
_BLOCKS = (("red_block", 6), ("blue_block", 12), ("pink_block", 18))
_FNV_PRIME = 0x01000193
_TURN = (pi / 2 - pi / 8, pi / 2 + pi / 8)  # of a block about the vertical, rad


def scene_of(state: State) -> np.ndarray:
    """The simulator's scene_obs for an initial state, float64 [24].

    Slider, drawer, button, switch, bulb, LED, then position (m) and Euler angles (rad) of the red,
    the blue and the pink block. The order of places on the table and the rotation of blocks are
    drawn with `seed_of`.
    """
    random = np.random.RandomState(seed_of(state))
    places = list(_ON_TABLE)
    random.shuffle(places)
    scene = np.zeros(24)
    scene[_SLIDER] = 0.28 if state["slider"] == "left" else 0.0
    scene[_DRAWER] = 0.22 if state["drawer"] == "open" else 0.0
    scene[_SWITCH] = 0.088 if state["lightbulb"] else 0.0
    scene[_BULB], scene[_LED] = state["lightbulb"], state["led"]
    for block, at in _BLOCKS:
        place = str(state[block])
        scene[at : at + 3] = (
            _IN_SLIDER[place] if place in _IN_SLIDER else _place(places, state, block)
        )
        scene[at + 5] = random.uniform(*_TURN)
    return scene


def _place(
    places: list[tuple[float, float, float]], state: State, block: str
) -> tuple[float, float, float]:
    """Place of a block: red takes the first, pink the second, blue the remaining one."""
    second = block == "pink_block" or (block == "blue_block" and state["red_block"] == "table")
    return places[second]


def seed_of(state: State) -> int:
    """FNV-1 of 32 bits with 0 as its start, over the UTF-16 of the values as Python prints them."""
    value = 0
    for byte in hashed_text(state).encode("utf-16-le"):
        value = (value * _FNV_PRIME & 0xFFFFFFFF) ^ byte
    return value


def hashed_text(state: State) -> str:
    """The text that the seed is hashed from."""
    return str(dict(state).values())
