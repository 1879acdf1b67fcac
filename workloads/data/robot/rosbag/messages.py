"""ROS 2 messages as vectors, images and texts, by message type."""

from typing import Any

import numpy as np

from workloads.data.robot import images

IMAGE, COMPRESSED, TEXT = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "std_msgs/msg/String",
)
JOINTS = "sensor_msgs/msg/JointState"
_ARRAYS = tuple(
    f"std_msgs/msg/{kind}MultiArray" for kind in ("Float32", "Float64", "Int32", "Int64")
)
VECTORS = (
    JOINTS,
    *_ARRAYS,
    "std_msgs/msg/Float32",
    "std_msgs/msg/Float64",
    "trajectory_msgs/msg/JointTrajectory",
    "geometry_msgs/msg/Twist",
    "geometry_msgs/msg/TwistStamped",
    "geometry_msgs/msg/PoseStamped",
)
# encoding → channels a pixel, and whether blue comes first
_ENCODINGS = {"rgb8": (3, False), "bgr8": (3, True), "rgba8": (4, False), "bgra8": (4, True)}
# The order of CRANE-X7's joints, as its controllers name them.
CRANE_X7 = (
    "crane_x7_shoulder_fixed_part_pan_joint",
    "crane_x7_shoulder_revolute_part_tilt_joint",
    "crane_x7_upper_arm_revolute_part_twist_joint",
    "crane_x7_upper_arm_revolute_part_rotate_joint",
    "crane_x7_lower_arm_fixed_part_joint",
    "crane_x7_lower_arm_revolute_part_joint",
    "crane_x7_wrist_joint",
    "crane_x7_gripper_finger_a_joint",
)


def positions(message: Any) -> dict[str, float]:
    """The positions of a JointState by joint; none for joints that it only names."""
    names = (str(name) for name in message.name)
    return dict(zip(names, map(float, message.position), strict=False))


def vector(kind: str, message: Any) -> np.ndarray | None:
    """float32 [D] of any message but a JointState; None where it is empty."""
    if kind == "trajectory_msgs/msg/JointTrajectory":
        values = list(message.points[-1].positions) if len(message.points) else []
    elif kind.endswith("MultiArray"):
        values = list(message.data)
    elif kind.startswith("std_msgs"):
        values = [message.data]
    elif kind == "geometry_msgs/msg/PoseStamped":
        pose = message.pose
        values = [*_xyz(pose.position), *_xyz(pose.orientation), pose.orientation.w]
    else:
        twist = message.twist if kind.endswith("Stamped") else message
        values = [*_xyz(twist.linear), *_xyz(twist.angular)]
    return np.asarray(values, np.float32) if values else None


def _xyz(part: Any) -> list[float]:
    return [part.x, part.y, part.z]


def no_colour(kind: str, message: Any) -> str | None:
    """Why an image is not of a colour camera; None where it is."""
    if kind == COMPRESSED:
        is_depth = "compresseddepth" in message.format.lower().replace(" ", "")
        known = images.looks_like_image(bytes(message.data[:16]))
        return f"compressed as {message.format}" if is_depth or not known else None
    return None if message.encoding in _ENCODINGS else f"encoding {message.encoding}"


def pixels(kind: str, message: Any) -> np.ndarray:
    """uint8 [H, W, 3], red first; raises ImageError."""
    if kind == COMPRESSED:
        return images.decode(bytes(message.data))
    channels, is_bgr = _ENCODINGS.get(message.encoding, (0, False))
    height, width, step = message.height, message.width, message.step
    if not channels or step < channels * width or len(message.data) != height * step:
        raise images.ImageError(f"{message.encoding} of {width} x {height}, {step} bytes a row")
    rows = np.asarray(message.data, np.uint8).reshape(height, step)[:, : channels * width]
    found = rows.reshape(height, width, channels)[..., :3]
    return np.ascontiguousarray(found[..., ::-1] if is_bgr else found)
