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
OLD = 0.5  # seconds after which a picture says nothing about now


class PolicyNode(Node):
    """Asks the policy for the next steps whenever those it has are done."""

    def __init__(self) -> None:
        super().__init__("crane_x7_policy")
        self.declare_parameter("url", "http://127.0.0.1:8000/act")
        self.declare_parameter("instruction", "manipulate the object")
        self.declare_parameter("unnorm_key", "crane_x7")
        self.declare_parameter("max_step", 0.2)  # rad that a joint may move in a tenth of a second
        self.client = PolicyClient(self.value("url"), timeout=5.0)
        self.instruction = self.value("instruction")
        self.image: tuple[float, np.ndarray] | None = None
        self.state: np.ndarray | None = None
        self.steps: deque[np.ndarray] = deque()
        self.publisher = self.create_publisher(Float32MultiArray, "/vla/predicted_action", 1)
        sensors = qos_profile_sensor_data
        self.create_subscription(Image, "/camera/color/image_raw", self.on_image, sensors)
        self.create_subscription(JointState, "/joint_states", self.on_joints, sensors)
        self.create_subscription(String, "/vla/update_instruction", self.on_instruction, 1)
        # A group of its own: pictures keep coming while the policy is asked.
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(1 / RATE, self.tick, callback_group=group)

    def value(self, name):
        return self.get_parameter(name).value

    def now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def on_image(self, message: Image) -> None:
        self.image = (self.now(), rgb_of(message))

    def on_joints(self, message: JointState) -> None:
        found = dict(zip(message.name, message.position, strict=False))
        if all(name in found for name in JOINTS):
            self.state = np.array([found[name] for name in JOINTS])

    def on_instruction(self, message: String) -> None:
        self.instruction = message.data
        self.steps.clear()

    def tick(self) -> None:
        """Publish one step; nothing where there is no new picture or no answer: the arm holds."""
        image, state = self.image, self.state
        if image is None or state is None or self.now() - image[0] > OLD:
            self.steps.clear()
            self.get_logger().warning(
                "waiting for a picture and joint states", throttle_duration_sec=2.0
            )
            return
        if not self.steps and not self.ask(image[1], state):
            return
        goal = np.clip(self.steps.popleft(), LOW, HIGH)
        most = self.value("max_step")
        goal = state + np.clip(goal - state, -most, most)
        self.publisher.publish(Float32MultiArray(data=[float(angle) for angle in goal]))

    def ask(self, image: np.ndarray, state: np.ndarray) -> bool:
        """Fill `steps`; false where the server refuses or does not answer."""
        try:
            actions = self.client.act(self.instruction, image, state, self.value("unnorm_key"))
        except (OSError, ServerError) as error:
            self.get_logger().error(f"no action: {error}", throttle_duration_sec=2.0)
            return False
        self.steps.extend(np.atleast_2d(actions))
        return True


def rgb_of(message: Image) -> np.ndarray:
    """A picture as the policy was trained on it: uint8 [H, W, 3], red first."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"expected rgb8 or bgr8, found {message.encoding}")
    rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
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
