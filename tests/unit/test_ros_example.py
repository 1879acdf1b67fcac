"""The ROS 2 node of the documents, against a real server; ROS itself is a stand-in."""

import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_policy import policy_folder
from workloads.vla.openvla.config import OftSpec
from workloads.vla.policy import Observation, Policy
from workloads.vla.serve import client
from workloads.vla.serve.server import claim
from workloads.vla.serve.service import Service

pytestmark = pytest.mark.unit
FILE = Path(__file__).resolve().parents[2] / "docs/examples/crane_x7_policy_node.py"


class StandInNode:
    """Parameters, publishers and a clock, as rclpy's nodes have them."""

    def __init__(self, name: str) -> None:
        self.parameters: dict[str, Any] = {}
        self.published: list[Any] = []
        self.told: list[str] = []
        self.seconds = 100.0

    def declare_parameter(self, name: str, value: Any) -> None:
        self.parameters.setdefault(name, value)

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(value=self.parameters[name])

    def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
        assert topic == "/vla/predicted_action"
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind: Any, topic: str, callback: Any, quality: Any) -> None:
        pass

    def create_timer(self, seconds: float, callback: Any, callback_group: Any) -> None:
        assert seconds == 0.1

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=int(self.seconds * 1e9)))

    def get_logger(self) -> Any:
        def tell(text: str, throttle_duration_sec: float) -> None:
            self.told.append(text)

        return SimpleNamespace(warning=tell, error=tell)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    modules: dict[str, dict[str, Any]] = {
        "rclpy": {},
        "rclpy.callback_groups": {"MutuallyExclusiveCallbackGroup": object},
        "rclpy.executors": {
            "ExternalShutdownException": Exception,
            "MultiThreadedExecutor": object,
        },
        "rclpy.node": {"Node": StandInNode},
        "rclpy.qos": {"qos_profile_sensor_data": None},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": object, "JointState": object},
        "std_msgs": {},
        "std_msgs.msg": {"Float32MultiArray": SimpleNamespace, "String": object},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    # As the robot has it: the client's file beside the node's.
    monkeypatch.setitem(sys.modules, "client", client)
    spec = importlib.util.spec_from_file_location("crane_x7_policy_node", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Policy]]:
    oft = OftSpec(action_dim=8, action_chunk=2, proprio_dim=8)
    folder = policy_folder(tmp_path_factory.mktemp("policy") / "oft", oft=oft)
    policy = Policy.from_pretrained(folder, device="cpu", tell=lambda text: None)
    server = claim("127.0.0.1", 0, None)
    server.service = Service(policy)
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/act", policy
    server.shutdown()
    thread.join()
    server.server_close()


def image(encoding: str, pixels: np.ndarray, padding: int = 5) -> Any:
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)))
    sizes = {"height": height, "width": width, "step": rows.shape[1]}
    return SimpleNamespace(encoding=encoding, data=rows.tobytes(), **sizes)


def joints(example: Any, state: np.ndarray) -> Any:
    """As the robot sends them: in an order of its own, and more than ours."""
    names = [*reversed(example.JOINTS), "crane_x7_gripper_finger_b_joint"]
    return SimpleNamespace(name=names, position=[*reversed(state.tolist()), 0.0])


def test_the_robot_moves_by_what_the_policy_says(example: Any, served: tuple[str, Policy]) -> None:
    url, policy = served
    node = example.PolicyNode()
    node.client = client.PolicyClient(url, send="png")
    node.parameters["max_step"] = 10.0
    node.tick()
    assert node.published == [] and node.told == ["waiting for a picture and joint states"]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    state = np.linspace(-0.4, 0.4, 8)
    node.on_image(image("bgr8", pixels[..., ::-1]))
    node.on_joints(joints(example, state))
    node.on_instruction(SimpleNamespace(data="take the cube"))
    for _ in range(2):
        node.tick()
    exact = policy.act([Observation({"primary": pixels}, "take the cube", state)])[0]
    found = np.array([one.data for one in node.published])
    assert np.allclose(found, np.clip(exact, example.LOW, example.HIGH), atol=1e-6)
    assert not node.steps, "both steps of the chunk were used before the next question"


def test_it_holds_where_nothing_is_known_and_never_jumps(
    example: Any, served: tuple[str, Policy]
) -> None:
    node = example.PolicyNode()
    node.client = client.PolicyClient(served[0])
    node.on_image(image("rgb8", np.zeros((48, 64, 3), np.uint8)))
    state = np.full(8, -0.05)
    node.on_joints(joints(example, state))
    node.steps.append(np.full(8, 1.5))
    node.tick()
    # The fourth joint ends near 0, the others go on by as much as they may.
    expected = np.where(np.arange(8) == 3, 1.7e-5, state + 0.2)
    assert np.allclose(node.published[0].data, expected)
    node.seconds += 1
    node.tick()
    assert len(node.published) == 1 and "waiting for a picture" in node.told[-1]
    node.on_image(image("rgb8", np.zeros((48, 64, 3), np.uint8)))
    node.parameters["unnorm_key"] = "bridge"
    node.tick()
    assert len(node.published) == 1 and "known: crane_x7" in node.told[-1]
    with pytest.raises(ValueError, match="found 16UC1"):
        node.on_image(image("16UC1", np.zeros((4, 4, 3), np.uint8)))
