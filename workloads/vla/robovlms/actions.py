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


def command(arm: np.ndarray, gripper_logit: np.ndarray, low: float, high: float) -> np.ndarray:
    """What the robot is sent: arm [..., 6] of −1..1 back to `low` to `high`, gripper −1 or 1.

    gripper_logit [..., 1]; open (1) where its sigmoid is above one half.
    """
    scaled = (arm + 1) / 2 * (high - low) + low
    gripper = np.where(gripper_logit > 0, 1.0, -1.0)
    return np.concatenate([scaled, gripper], axis=-1).astype(arm.dtype)
