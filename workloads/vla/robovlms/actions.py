"""Actions of policy heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workloads.vla.actions import normalize, unnormalize


def normalise(actions: np.ndarray, low: float, high: float) -> np.ndarray:
    """Actions [..., 7] as they are trained on, in the type given.

    The arm is clipped to `low` and `high` and scaled to -1 to 1; the gripper, -1 closed and 1 open
    as recorded, becomes 0 and 1. Other values become closed, as in the published code, which rounds
    down.
    """
    arm = (np.clip(actions[..., :-1], low, high) - low) / (high - low) * 2 - 1
    gripper = np.floor((actions[..., -1:] + 1) / 2)
    return np.concatenate([arm, gripper], axis=-1).astype(actions.dtype)


def command(arm: np.ndarray, gripper_logit: np.ndarray, low: float, high: float) -> np.ndarray:
    """The command for the robot: arm [..., 6] of −1..1 scaled to `low` to `high`, gripper −1 or 1.

    gripper_logit [..., 1]; open (1) where its sigmoid is above one half.
    """
    scaled = (arm + 1) / 2 * (high - low) + low
    gripper = np.where(gripper_logit > 0, 1.0, -1.0)
    return np.concatenate([scaled, gripper], axis=-1).astype(arm.dtype)


@dataclass(frozen=True)
class ActionScale:
    """Converts between a dataset's actions and normalised ones.

    statistics: the dataset's numbers of its actions; bounds: instead of q01 to q99; gripper:
    whether the last number is one, closed at its smallest value and open at its largest.
    """

    statistics: Mapping[str, Any]
    bounds: tuple[float, float] | None
    gripper: bool

    def labels(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in the robot's units → float32 [..., A]: −1..1, a gripper 0 or 1."""
        if self.bounds is None:
            found = normalize(actions, self.statistics)
        else:
            low, high = self.bounds
            found = (np.clip(actions, low, high) - low) / (high - low) * 2 - 1
        if self.gripper:
            closed, opened = self._gripper()
            # One that never moves has no middle: of a set without a gripper, or always open.
            middle = (closed + opened) / 2 if closed < opened else 0.5
            found[..., -1] = actions[..., -1] > middle
        return found.astype(np.float32)

    def actions(self, arm: np.ndarray, opens: np.ndarray | None) -> np.ndarray:
        """arm [..., A − gripper] of −1..1, opens bool [...] → float64 [..., A], robot's units."""
        if self.bounds is not None:
            low, high = self.bounds
            found = (arm.astype(np.float64) + 1) / 2 * (high - low) + low
            if opens is not None:
                found = np.concatenate([found, np.zeros((*arm.shape[:-1], 1))], axis=-1)
        else:
            whole = arm
            if opens is not None:
                whole = np.concatenate([arm, np.zeros((*arm.shape[:-1], 1), arm.dtype)], axis=-1)
            found = unnormalize(whole, self.statistics)
        if opens is not None:
            closed, opened = self._gripper()
            found[..., -1] = np.where(opens, opened, closed)
        return found

    @property
    def unit(self) -> np.ndarray:
        """[A − gripper]: the robot's units that one normalised unit is."""
        arm = slice(None, -1 if self.gripper else None)
        low, high = (np.asarray(self.statistics[name], np.float64)[arm] for name in ("q01", "q99"))
        if self.bounds is not None:
            return np.full(len(low), (self.bounds[1] - self.bounds[0]) / 2)
        mask = np.asarray(self.statistics.get("mask", np.ones(len(low) + self.gripper)), bool)[arm]
        return np.where(mask, (high - low) / 2, 1.0)

    def _gripper(self) -> tuple[float, float]:
        """The gripper's values closed and open."""
        return float(self.statistics["min"][-1]), float(self.statistics["max"][-1])
