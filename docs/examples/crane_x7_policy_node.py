#!/usr/bin/env python3
"""A ROS 2 node that has a served policy move a CRANE-X7.

    tatara serve latest                                      # where the GPU is
    python3 crane_x7_policy_node.py --ros-args \
        -p instruction:="pick up the red cube"               # where the robot is

Copy workloads/vla/serve/client.py beside this file; besides ROS 2 both need numpy and Pillow only.
For a server on another machine set `-p url:=http://HOST:8000/act` and TATARA_SERVE_TOKEN.

Reads  /camera/color/image_raw (sensor_msgs/Image), /joint_states (sensor_msgs/JointState) and
       /vla/update_instruction (std_msgs/String).
Writes /vla/predicted_action (std_msgs/Float32MultiArray) at 10 Hz: absolute joint positions in rad,
       seven for the arm and the eighth for the gripper, as CRANE-X7's controller node takes them.
"""

from collections import deque
from http.client import HTTPException

import numpy as np
import rclpy
from client import PolicyClient, ServerError
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32MultiArray, String

JOINTS = (
    "crane_x7_shoulder_fixed_part_pan_joint",
    "crane_x7_shoulder_revolute_part_tilt_joint",
    "crane_x7_upper_arm_revolute_part_twist_joint",
    "crane_x7_upper_arm_revolute_part_rotate_joint",
    "crane_x7_lower_arm_fixed_part_joint",
    "crane_x7_lower_arm_revolute_part_joint",
    "crane_x7_wrist_joint",
    "crane_x7_gripper_finger_a_joint",
)
LOW = np.array([-2.74017, -1.5708, -2.74017, -2.77507, -2.74017, -1.5708, -2.9147, -0.0873])
HIGH = np.array([2.74017, 1.5708, 2.74017, 1.7e-5, 2.74017, 1.5708, 2.9147, 1.5708])
RATE = 10.0  # Hz, that of the demonstrations
OLD = 0.5  # seconds after which an image or joint positions say nothing about now


class PolicyNode(Node):
    """Asks the policy for the next steps whenever those it has are done.

    A command is published only while the newest image and the newest joint positions are younger
    than OLD, checked before the policy is asked and again before every command. Whatever else
    comes in, the reason is logged and the arm holds where it is.
    """

    def __init__(self) -> None:
        super().__init__("crane_x7_policy")
        self.declare_parameter("url", "http://127.0.0.1:8000/act")
        self.declare_parameter("instruction", "manipulate the object")
        self.declare_parameter("unnorm_key", "crane_x7")
        self.declare_parameter("max_step", 0.2)  # rad that a joint may move in a tenth of a second
        self.client = PolicyClient(self.value("url"), timeout=5.0)
        self.instruction = self.value("instruction")
        # Each with the time that it is of.
        self.image: tuple[float, np.ndarray] | None = None
        self.state: tuple[float, np.ndarray] | None = None
        self.steps: deque[np.ndarray] = deque()
        self.publisher = self.create_publisher(Float32MultiArray, "/vla/predicted_action", 1)
        sensors = qos_profile_sensor_data
        self.create_subscription(Image, "/camera/color/image_raw", self.on_image, sensors)
        self.create_subscription(JointState, "/joint_states", self.on_joints, sensors)
        self.create_subscription(String, "/vla/update_instruction", self.on_instruction, 1)
        # A group of its own: images keep coming while the policy is asked.
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(1 / RATE, self.tick, callback_group=group)

    def value(self, name):
        return self.get_parameter(name).value

    def now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def time_of(self, message) -> float:
        """When a message was made: its stamp where it has an earlier one, else its receipt."""
        stamp = getattr(getattr(message, "header", None), "stamp", None)
        stamped = 0.0 if stamp is None else stamp.sec + stamp.nanosec * 1e-9
        return min(self.now(), stamped) if stamped > 0 else self.now()

    def on_image(self, message: Image) -> None:
        try:
            self.image = (self.time_of(message), rgb_of(message))
        except ValueError as error:
            self.image = None
            self.hold(f"an image that cannot be used: {error}")

    def on_joints(self, message: JointState) -> None:
        found = dict(zip(message.name, message.position, strict=False))
        if not all(name in found for name in JOINTS):
            return  # of another part of the robot
        state = np.array([found[name] for name in JOINTS], dtype=float)
        if np.isfinite(state).all():
            self.state = (self.time_of(message), state)
        else:
            self.state = None
            self.hold("joint positions that are not finite")

    def on_instruction(self, message: String) -> None:
        self.instruction = message.data
        self.steps.clear()

    def tick(self) -> None:
        """Publish one step, or say why the arm holds."""
        try:
            self.step()
        except Exception as error:  # one that is not caught ends the node
            self.hold(f"{type(error).__name__}: {error}")

    def step(self) -> None:
        if not self.is_current() or (not self.steps and not self.ask()):
            return
        # The answer may have taken long: whether the robot is still where it was is asked again.
        if not self.is_current():
            return
        most = self.value("max_step")
        if not 0 < most < np.inf:  # a range turned round would move every joint
            self.hold(f"max_step of {most}, expected rad above 0")
            return
        goal, position = self.steps.popleft(), self.state[1]
        goal = position + np.clip(np.clip(goal, LOW, HIGH) - position, -most, most)
        if not np.isfinite(goal).all():
            self.hold("a goal that is not finite")
            return
        self.publisher.publish(Float32MultiArray(data=[float(angle) for angle in goal]))

    def is_current(self) -> bool:
        """Whether image and joints are of now; if not, the reason is told and steps are dropped."""
        for name, known in (("an image", self.image), ("joint positions", self.state)):
            if known is None:
                self.hold(f"waiting for {name}")
                return False
            age = self.now() - known[0]
            if not 0 <= age <= OLD:
                self.hold(f"{name} of {age:.1f} s ago, at most {OLD} s are of use")
                return False
        return True

    def ask(self) -> bool:
        """Fill `steps`; false where there is no answer that can be used."""
        (taken, image), (_, state), instruction = self.image, self.state, self.instruction
        try:
            actions = self.client.act(instruction, image, state, self.value("unnorm_key"))
            steps = np.atleast_2d(np.asarray(actions, dtype=float))
        except (OSError, HTTPException, ServerError, TypeError, ValueError) as error:
            self.hold(f"no action: {error}")
            return False
        if steps.ndim != 2 or steps.shape[1] != len(JOINTS) or not np.isfinite(steps).all():
            self.hold(f"expected finite actions of {len(JOINTS)}, found {list(steps.shape)}")
            return False
        if instruction != self.instruction or self.now() - taken > OLD:
            self.hold(f"an answer to what was {self.now() - taken:.1f} s ago")
            return False
        self.steps.extend(steps)
        return True

    def hold(self, reason: str) -> None:
        """Publish nothing, forget the steps that were planned, and log why."""
        self.steps.clear()
        self.get_logger().warning(f"holding: {reason}", throttle_duration_sec=2.0)


def rgb_of(message: Image) -> np.ndarray:
    """An image as the policy was trained on it: uint8 [H, W, 3], red first; ValueError if none."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"expected rgb8 or bgr8, found {message.encoding}")
    height, width, step = message.height, message.width, message.step
    content = np.frombuffer(bytes(message.data), np.uint8)
    if height < 1 or width < 1 or step < 3 * width or len(content) != height * step:
        raise ValueError(f"{width} x {height} in rows of {step} bytes, {len(content)} bytes in all")
    pixels = content.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return np.ascontiguousarray(pixels[..., ::-1] if message.encoding == "bgr8" else pixels)


def main() -> None:
    rclpy.init()
    node = PolicyNode()
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.client.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
