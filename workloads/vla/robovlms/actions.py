"""Actions as the policy heads see them."""

import numpy as np


def normalise(actions: np.ndarray, low: float, high: float) -> np.ndarray:
    """Actions [..., 7] as they are trained on, in the type given.

    The arm is cut off at `low` and `high` and scaled to -1 to 1; the gripper, -1 closed and 1 open
    as recorded, becomes 0 and 1. What is neither becomes closed, as in the published code, which
    rounds down.
    """
    arm = (np.clip(actions[..., :-1], low, high) - low) / (high - low) * 2 - 1
    gripper = np.floor((actions[..., -1:] + 1) / 2)
    return np.concatenate([arm, gripper], axis=-1).astype(actions.dtype)
