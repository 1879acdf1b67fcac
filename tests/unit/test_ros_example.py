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
from workloads.vla.serve.service import PolicyService

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
        def report(text: str, throttle_duration_sec: float) -> None:
            self.told.append(text)

        return SimpleNamespace(warning=report, error=report)


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
    policy = Policy.from_pretrained(folder, device="cpu", report=lambda text: None)
    server = claim("127.0.0.1", 0, None)
    server.service = PolicyService(policy)
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
    assert node.published == [] and node.told == ["holding: waiting for an image"]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    state = np.linspace(-0.4, 0.4, 8)
    node.on_image(image("bgr8", pixels[..., ::-1]))
    node.on_joints(joints(example, state))
    node.on_instruction(SimpleNamespace(data="take the cube"))
    for _ in range(2):
        node.tick()
    exact = policy.act([Observation({"primary": pixels}, "take the cube", state)])[0]
    found = np.array([message.data for message in node.published])
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
    assert len(node.published) == 1 and "an image of 1.0 s ago" in node.told[-1]
    node.on_image(image("rgb8", np.zeros((48, 64, 3), np.uint8)))
    node.on_joints(joints(example, state))
    node.parameters["unnorm_key"] = "bridge"
    node.tick()
    assert len(node.published) == 1 and "known: crane_x7" in node.told[-1]


ANSWER = np.full((8, 8), 0.5)


def ready(example: Any, act: Any, position: float = 0.0) -> Any:
    """A node with a fresh image and joints, whose policy is a function."""
    node = example.PolicyNode()
    node.client = SimpleNamespace(act=act, close=lambda: None)
    node.on_joints(joints(example, np.full(8, position)))
    node.on_image(image("rgb8", np.zeros((4, 4, 3), np.uint8)))
    return node


def test_silent_joints_stop_the_arm(example: Any) -> None:
    """V-W5 (a): joint states end, images go on."""
    node = ready(example, lambda *_: ANSWER)
    for _ in range(100):
        node.on_image(image("rgb8", np.zeros((4, 4, 3), np.uint8)))
        node.tick()
        node.seconds += 0.1
    assert len(node.published) == 6, "half a second, and nothing after it"
    assert "joint positions of" in node.told[-1] and not node.steps


def test_an_answer_that_took_long_moves_nothing(example: Any) -> None:
    """V-W5 (b): the answer takes 4 s, meanwhile the arm is moved by hand."""

    def slow(*_: Any) -> np.ndarray:
        node.seconds += 4.0
        node.on_joints(joints(example, np.full(8, -1.0)))
        node.on_image(image("rgb8", np.zeros((4, 4, 3), np.uint8)))
        return ANSWER

    node = ready(example, slow)
    node.tick()
    assert node.published == [] and "an answer to what was 4.0 s ago" in node.told[-1]


def test_goals_start_from_the_newest_joints(example: Any) -> None:
    """V-W5 (b): within the time that counts, a goal is relative to where the arm is now."""

    def quick(*_: Any) -> np.ndarray:
        node.seconds += 0.3
        node.on_joints(joints(example, np.full(8, -0.05)))
        return ANSWER

    node = ready(example, quick)
    node.tick()
    assert np.abs(np.array(node.published[0].data) + 0.05).max() <= 0.2 + 1e-9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_joints_that_are_not_finite_move_nothing(example: Any, value: float) -> None:
    """V-W5 (c)."""
    node = ready(example, lambda *_: ANSWER)
    node.on_joints(joints(example, np.full(8, value)))
    node.tick()
    assert node.published == [] and "not finite" in node.told[0]


@pytest.mark.parametrize("encoding", ["mono8", "rgba8", "yuv422_yuy2", "16UC1", ""])
def test_images_of_other_kinds_are_told_of(example: Any, encoding: str) -> None:
    """V-W5 (d)."""
    node = ready(example, lambda *_: ANSWER)
    node.on_image(image(encoding, np.zeros((4, 4, 3), np.uint8)))
    node.tick()
    assert node.published == [] and f"expected rgb8 or bgr8, found {encoding}" in node.told[0]


@pytest.mark.parametrize(
    "changes", [{"data": b""}, {"step": 3}, {"height": 0}, {"width": 4000}, {"data": bytes(9)}]
)
def test_images_that_are_cut_off_are_told_of(example: Any, changes: dict[str, Any]) -> None:
    """V-W5 (d): sizes that do not fit together."""
    node = ready(example, lambda *_: ANSWER)
    whole = image("rgb8", np.zeros((4, 4, 3), np.uint8))
    node.on_image(SimpleNamespace(**{**vars(whole), **changes}))
    node.tick()
    assert node.published == [] and "an image that cannot be used" in node.told[0]


@pytest.mark.parametrize(
    "answer",
    [np.zeros(7), np.zeros((8, 9)), np.full(8, np.nan), [[0.0] * 8, [0.0]], "text", None],
)
def test_answers_that_are_no_actions_move_nothing(example: Any, answer: Any) -> None:
    """V-W5 (e)."""
    node = ready(example, lambda *_: answer)
    node.tick()
    assert node.published == [] and node.told[-1].startswith("holding: ")


@pytest.mark.parametrize(
    "error",
    [ValueError("answer is no JSON"), OSError("unreachable"), KeyError("x"), RuntimeError("x")],
)
def test_whatever_the_client_raises_the_node_lives(example: Any, error: Exception) -> None:
    """V-W5 (f)."""

    def fail(*_: Any) -> np.ndarray:
        raise error

    node = ready(example, fail)
    node.tick()
    assert node.published == [] and node.told[-1].startswith("holding: ")


@pytest.mark.parametrize("most", [0.0, -0.2, np.nan, np.inf, "fast"])
def test_a_step_without_a_limit_moves_nothing(example: Any, most: Any) -> None:
    """V-W5: a range whose ends are exchanged would move every joint by it."""
    node = ready(example, lambda *_: ANSWER)
    node.parameters["max_step"] = most
    node.tick()
    assert node.published == [] and node.told[-1].startswith("holding: ")


def test_age_is_that_of_the_stamp_where_one_is_set(example: Any) -> None:
    """V-W5: a message that was under way for long is old when it comes."""
    node = ready(example, lambda *_: ANSWER)

    def stamped(seconds: float) -> Any:
        late = image("rgb8", np.zeros((4, 4, 3), np.uint8))
        stamp = SimpleNamespace(sec=int(seconds), nanosec=int(seconds % 1 * 1e9))
        return SimpleNamespace(**vars(late), header=SimpleNamespace(stamp=stamp))

    node.on_image(stamped(node.seconds - 2))
    node.tick()
    assert node.published == [] and "an image of 2.0 s ago" in node.told[-1]
    node.on_image(stamped(0))  # not set: by its receipt
    node.tick()
    assert len(node.published) == 1
    node.on_image(stamped(node.seconds + 60))  # another clock: by its receipt
    node.tick()
    assert len(node.published) == 2


def test_an_instruction_that_changes_while_the_policy_thinks(example: Any) -> None:
    """V-W5: the steps of the old instruction are not done."""

    def thinking(*_: Any) -> np.ndarray:
        node.on_instruction(SimpleNamespace(data="stop"))
        return ANSWER

    node = ready(example, thinking)
    node.tick()
    assert node.published == []


@pytest.mark.parametrize(
    "content", [b"no json", b"{}", b"[]", b"[NaN]", b'["a"]', b"[[1], [1, 2]]"]
)
def test_the_client_refuses_answers_that_are_none(content: bytes) -> None:
    """V-W5 (f)."""
    with pytest.raises(client.ServerError, match="expected .*actions"):
        client._actions(content)
