"""A script instead of a policy, with known positions of the table's parts, to test the simulator.

It presses the button, pushes the slider, opens and closes the drawer, and ignores blocks and the
switch. Its successes only show that simulator and protocol work.
"""

from collections.abc import Iterator

import numpy as np

from workloads.vla.calvin.client import SimulatorFrame

_STEP = 0.02  # m that an action of 1 moves the target pose
_NEAR = 0.012  # m
_BUTTON = np.array([-0.12, -0.12, 0.46])  # m, its upper face when nobody presses it
_HANDLE = np.array([0.04, 0.0, 0.54])  # of the slider at its right end, 0.28 m from the left one
_WIDTH = 0.28
_DRAWER = np.array([0.18, -0.23, 0.36])  # behind the handle of the closed drawer, which opens to −y
_ABOVE = 0.55  # m, over everything on the table


class Script:
    """Way points of the closed gripper, straight lines between them."""

    def begin(self, task: str) -> None:
        self._task = task
        self._target: np.ndarray | None = None

    def act(self, frame: SimulatorFrame) -> np.ndarray:
        """The action towards the next way point, float64 [7]; the arm rests after the last one."""
        if self._target is None:
            # The simulator adds to the target pose, which the arm is close to.
            self._target = frame.robot_obs[:3].copy()
            self._points = _way(self._task, frame)
            self._next = next(self._points, None)
        while self._next is not None and np.linalg.norm(self._next - self._target) < _NEAR:
            self._next = next(self._points, None)
        sent = np.zeros(7)
        sent[-1] = -1.0
        if self._next is not None:
            sent[:3] = np.clip((self._next - self._target) / _STEP, -1, 1)
            self._target += sent[:3] * _STEP
        return sent


def _way(task: str, frame: SimulatorFrame) -> Iterator[np.ndarray]:
    here, over = frame.robot_obs[:3], np.array([0.0, 0.0, 0.1])
    if task.endswith("_led"):
        yield _BUTTON + over
        yield _BUTTON + [0, 0, -0.02]
        yield _BUTTON + over
    elif task.endswith("_drawer") and task.startswith(("open", "close")):
        opens = task.startswith("open")
        handle = _DRAWER - [0, frame.scene_obs[1] + (0 if opens else 0.07), 0]
        yield np.array([*handle[:2], _ABOVE])
        yield handle
        yield handle - [0, 0.25 if opens else -0.3, 0]
    elif task.startswith("move_slider"):
        to_left = task.endswith("left")
        handle = _HANDLE - [frame.scene_obs[0], 0, 0]
        aside = np.array([0.08 if to_left else -0.08, 0, 0])
        front = np.array([0, -0.1, 0])
        yield np.array([here[0], here[1], handle[2] + 0.05])
        yield handle + aside + front
        yield handle + aside
        yield handle + aside - [(_WIDTH + 0.05) * np.sign(aside[0]), 0, 0]
