"""The scripted expert, which knows the cubes' positions and reaches the named cube."""

import numpy as np

from workloads.vla.reach import arm
from workloads.vla.reach.scene import Scene

# Share of the remaining distance moved in a step: fast at first, gentle at the end.
_SHARE = 0.6


def command(joints: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Joint positions [..., 8] to send next, from `joints` [..., 8] towards `goal` [..., 3]."""
    return np.asarray(arm.moved(joints, joints + _SHARE * (arm.reaching(goal) - joints)))


def demonstration(scene: Scene, steps: int, cube: int = 0) -> np.ndarray:
    """Joint positions [steps + 1, 8] from the scene's start to its goal or another of its cubes."""
    joints = [scene.start]
    for _ in range(steps):
        joints.append(command(joints[-1], scene.top(cube)))
    return np.stack(joints)
