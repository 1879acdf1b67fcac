"""Kinematics of a CRANE-X7's arm: the fingertip's position, and joint angles that reach a position.

Metres and rad. x points forward from the base, y to the left, z up. With all joints at 0 the arm
stands upright; negative shoulder tilt and negative elbow bend forward. The lengths are those of the
robot, rounded; masses, collisions and the fingers' motion are left out.
"""

import numpy as np

from workloads.data.robot.crane_x7.tfrecords import JOINT_LIMITS

JOINTS = len(JOINT_LIMITS)
SHOULDER_HEIGHT = 0.105
UPPER_ARM = 0.25
FOREARM = 0.25
HAND = 0.15  # wrist to fingertip
# Folded above the table, hand down.
HOME = np.array([0.0, 0.2, 0.0, -2.0, 0.0, -1.3, 0.0, 0.3])
# The largest rotation of a joint in one step: 4.5 rad/s at 5 steps a second.
MAX_TURN = 0.9

_LOW, _HIGH = np.asarray(JOINT_LIMITS, np.float64).T
_PAN, _TILT, _TWIST, _ELBOW, _LOWER_TWIST, _PITCH, _WRIST = range(7)


def within_limits(joints: np.ndarray) -> np.ndarray:
    """Joint positions [..., 8] clipped to the robot's limits."""
    return np.clip(joints, _LOW, _HIGH)


def moved(joints: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Joint positions [..., 8] one step after `joints` [..., 8] were sent to `goals` [..., 8]."""
    turn = np.clip(within_limits(goals) - joints, -MAX_TURN, MAX_TURN)
    return np.asarray(joints + turn)


def points(joints: np.ndarray) -> np.ndarray:
    """Shoulder, elbow, wrist and fingertip, [..., 4, 3], of joint positions [..., 8]."""
    shoulder = np.zeros((*joints.shape[:-1], 3))
    shoulder[..., 2] = SHOULDER_HEIGHT
    found, turned = [shoulder], _about_z(joints[..., _PAN])
    for length, bend, twist in (
        (UPPER_ARM, _TILT, _TWIST),
        (FOREARM, _ELBOW, _LOWER_TWIST),
        (HAND, _PITCH, _WRIST),
    ):
        turned = turned @ _bend(joints[..., bend])
        found.append(found[-1] + length * turned[..., 2])
        turned = turned @ _about_z(joints[..., twist])
    return np.stack(found, axis=-2)


def fingertip(joints: np.ndarray) -> np.ndarray:
    """Position [..., 3] in m of the fingertip at joint positions [..., 8]."""
    return points(joints)[..., -1, :]


def reaching(tip: np.ndarray) -> np.ndarray:
    """Joint positions [..., 8] with the fingertip at `tip` [..., 3] and the hand straight down.

    The tip must lie in front of the robot and within its reach, as all of a scene's objects do.
    """
    across, up = np.hypot(tip[..., 0], tip[..., 1]), tip[..., 2] + HAND - SHOULDER_HEIGHT
    reach = across**2 + up**2
    inner = (reach - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    elbow = np.arccos(np.clip(inner, -1, 1))
    beyond = np.arctan2(FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
    tilt = np.arctan2(across, up) - beyond
    joints = np.broadcast_to(HOME, (*tip.shape[:-1], JOINTS)).copy()
    joints[..., _PAN] = np.arctan2(tip[..., 1], tip[..., 0])
    joints[..., _TILT], joints[..., _ELBOW] = -tilt, -elbow
    joints[..., _PITCH] = tilt + elbow - np.pi
    return joints


def _about_z(angle: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] of a link about its own length."""
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return _matrix((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))


def _bend(angle: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] that lean a link; a negative angle leans it forward."""
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return _matrix((cos, zero, -sin), (zero, one, zero), (sin, zero, cos))


def _matrix(*rows: tuple[np.ndarray, ...]) -> np.ndarray:
    found = np.empty((*rows[0][0].shape, 3, 3))
    for down, row in enumerate(rows):
        for across, value in enumerate(row):
            found[..., down, across] = value
    return found
