"""ROS 2 bags, mcap and sqlite3, written by the rosbags package and read as episodes."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.robot_data import picture, step_of
from workloads.cli import main
from workloads.data.robot import open_dataset
from workloads.data.robot.images import encode_jpeg
from workloads.data.robot.rosbag.messages import CRANE_X7
from workloads.errors import UserError

rosbag2 = pytest.importorskip("rosbags.rosbag2")
typesys = pytest.importorskip("rosbags.typesys")
pytestmark = pytest.mark.unit
STORE = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
TYPES = STORE.types
SECOND = 1_000_000_000


def header(frame: str = "") -> Any:
    return TYPES["std_msgs/msg/Header"](TYPES["builtin_interfaces/msg/Time"](0, 0), frame)


def image(pixels: np.ndarray, encoding: str = "bgr8") -> Any:
    height, width = pixels.shape[:2]
    content = np.ascontiguousarray(pixels[..., ::-1] if encoding == "bgr8" else pixels)
    step = content.nbytes // height
    return TYPES["sensor_msgs/msg/Image"](
        header(), height, width, encoding, 0, step, content.view(np.uint8).ravel()
    )


def joints(position: np.ndarray) -> Any:
    names = [*reversed(CRANE_X7), "crane_x7_gripper_finger_b_joint"]
    values = np.array([*reversed(position.tolist()), 0.0])
    return TYPES["sensor_msgs/msg/JointState"](header(), names, values, np.zeros(0), np.zeros(0))


def bag(
    folder: Path, plugin: str = "MCAP", seconds: float = 2.0, gap: tuple[float, float] = (9, 9)
) -> Path:
    """Images at 20 Hz, joints at 50 Hz, an instruction that changes after a second, depth and a
    laser scan's worth of something else. gap: seconds without images."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    events: list[tuple[int, str, Any]] = [
        (0, "/vla/update_instruction", TYPES["std_msgs/msg/String"]("take the cube")),
        (SECOND, "/vla/update_instruction", TYPES["std_msgs/msg/String"]("put it down")),
        (SECOND, "/odometer", TYPES["std_msgs/msg/Bool"](True)),
        (0, "/camera/depth/image_raw", image(np.zeros((24, 32, 2), np.uint8), "16UC1")),
    ]
    for tick in range(int(20 * seconds)):
        if not gap[0] <= tick / 20 < gap[1]:
            at = tick * SECOND // 20
            events.append((at, "/camera/color/image_raw", image(picture(tick // 2 % 30))))
            jpeg = np.frombuffer(encode_jpeg(picture(tick // 2 % 30)), np.uint8)
            packed = TYPES["sensor_msgs/msg/CompressedImage"](header(), "jpeg", jpeg)
            events.append((at, "/wrist/image_raw/compressed", packed))
    for tick in range(int(50 * seconds)):
        events.append((tick * SECOND // 50, "/joint_states", joints(np.full(8, tick / 50))))
    kinds = {topic: message.__msgtype__ for _, topic, message in events}
    storage = rosbag2.StoragePlugin[plugin]
    with rosbag2.Writer(folder, version=9, storage_plugin=storage) as writer:
        open_topics = {
            topic: writer.add_connection(topic, kind, typestore=STORE)
            for topic, kind in kinds.items()
        }
        for at, topic, message in sorted(events, key=lambda event: event[0]):
            raw = STORE.serialize_cdr(message, kinds[topic])
            writer.write(open_topics[topic], 1_700_000_000 * SECOND + at, raw)
    return folder


@pytest.mark.parametrize("plugin", ["MCAP", "SQLITE3"])
def test_topics_become_steps(tmp_path: Path, plugin: str) -> None:
    for number in range(2):
        bag(tmp_path / f"bags/run_{number}", plugin)
    dataset = open_dataset(tmp_path / "bags")
    assert dataset.format == "rosbag" and dataset.fps == 10 and dataset.name == "crane_x7"
    assert dataset.cameras == ("camera/color", "wrist") and dataset.state_names == CRANE_X7
    episode = pickle.loads(pickle.dumps(dataset))[1]
    assert len(episode) == 19 and np.allclose(episode.states[:, 0], np.arange(19) / 10, atol=1e-6)
    assert np.allclose(episode.actions[:-1], episode.states[1:]), "the next state"
    for camera in episode.cameras:
        assert [step_of(episode.image(camera, t)) for t in (18, 0, 7)] == [18, 0, 7]
    assert (episode.encoded("wrist", 0) or b"").startswith(b"\xff\xd8")
    assert [episode.instruction_at(t) for t in (9, 10)] == ["take the cube", "put it down"]
    assert dataset.unused == {
        "/odometer": "std_msgs/msg/Bool",
        "/camera/depth/image_raw": "no colour camera: encoding 16UC1",
    }
    assert dataset.verify() == []


def test_another_rate_and_conversion(tmp_path: Path) -> None:
    bag(tmp_path / "bags/run")
    out = tmp_path / "out"
    assert main(["data", "convert", str(tmp_path / "bags"), str(out), "--rate", "5"]) == 0
    again = open_dataset(out)
    assert again.fps == 5 and len(again[0]) == 9
    assert np.allclose(again[0].states[:, 3], np.arange(9) / 5, atol=1e-6)
    assert step_of(again[0].image("wrist", 4)) == 8


def test_a_gap_is_no_steps(tmp_path: Path) -> None:
    """Half a second after the last image nothing is known of what the camera sees."""
    bag(tmp_path / "bags/run", seconds=3, gap=(1.0, 2.0))
    dataset = open_dataset(tmp_path / "bags")
    assert dataset[0].gaps and dataset.damage[0].lost > 2
    assert "without a message of the last 0.5 s" in dataset.damage[0].cause
    for at, step in enumerate(dataset[0].rows):
        assert step <= 14 or step >= 20, at


def test_topics_that_are_not_there(tmp_path: Path) -> None:
    bag(tmp_path / "bags/run")
    with pytest.raises(
        UserError, match="found std_msgs/msg/Bool on it; topics with vectors: /joint"
    ):
        open_dataset(tmp_path / "bags", action_keys=["/odometer"])
    with pytest.raises(UserError, match="found no such topic"):
        open_dataset(tmp_path / "bags", state_keys=["/joints"])
    with pytest.raises(UserError, match="topics with texts: /vla/update_instruction"):
        open_dataset(tmp_path / "bags", instruction_key="/goal")


def test_a_bag_that_is_broken_weighs_what_the_others_hold(tmp_path: Path) -> None:
    for number in range(2):
        bag(tmp_path / f"bags/run_{number}")
    file = next((tmp_path / "bags/run_1").glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match="found 20 of 40.*not a readable bag"):
        open_dataset(tmp_path / "bags")


def test_a_pointer_in_place_of_a_bag_is_told(tmp_path: Path) -> None:
    """V-A14's kind."""
    file = next(bag(tmp_path / "run").glob("*.mcap"))
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "run git lfs pull" in str(open_dataset(tmp_path).damage[0])


def arm(folder: Path, names: list[str], bad: int | None = None, late: int = 0) -> Path:
    """A bag of an arm whose joints say their own number, in the order given; bad: the message
    with a value that is not finite; late: seconds from the joints to the images."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    storage = rosbag2.StoragePlugin.MCAP
    with rosbag2.Writer(folder, version=9, storage_plugin=storage) as writer:
        kinds = {"/joint_states": "sensor_msgs/msg/JointState", "/cam": "sensor_msgs/msg/Image"}
        topics = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in kinds.items()}
        for tick in range(20):
            values = np.array([float(name[-1]) for name in names])
            values[0] = np.nan if tick == bad else values[0]
            none = np.zeros(0)
            said = TYPES[kinds["/joint_states"]](header(), names, values, none, none)
            for topic, message in (("/joint_states", said), ("/cam", image(picture(tick)))):
                raw = STORE.serialize_cdr(message, kinds[topic])
                at = tick * SECOND // 10 + (late * SECOND if topic == "/cam" else 0)
                writer.write(topics[topic], at, raw)
    return folder


def test_joints_keep_one_order_through_all_bags(tmp_path: Path) -> None:
    arm(tmp_path / "bags/a", ["joint_1", "joint_2", "joint_3"])
    arm(tmp_path / "bags/b", ["joint_3", "joint_1", "joint_2", "joint_4"])
    arm(tmp_path / "bags/c", ["joint_3", "joint_1"])
    dataset = open_dataset(tmp_path / "bags", damage_budget=1000)
    assert dataset.state_names == ("joint_1", "joint_2", "joint_3") and len(dataset) == 2
    for episode in dataset:
        assert np.array_equal(episode.states, np.tile([1, 2, 3], (len(episode), 1)))
    assert dataset.unused["/joint_states/joint_4"] == "a joint that the first bag lacks"
    (damage,) = dataset.damage
    assert "no message on /joint_states that has all of joint_1, joint_2, joint_3" in damage.cause


def test_values_that_are_not_finite_are_no_steps(tmp_path: Path) -> None:
    arm(tmp_path / "bags/a", ["joint_1", "joint_2"], bad=7)
    dataset = open_dataset(tmp_path / "bags")
    assert np.isfinite(dataset[0].actions).all() and 7 not in dataset[0].rows
    (damage,) = dataset.damage
    assert damage.cause.startswith("non_finite: 2 of 20 steps") and damage.lost == 2


def test_topics_without_a_common_time_are_named(tmp_path: Path) -> None:
    arm(tmp_path / "bags/a", ["joint_1"], late=10)
    (damage,) = open_dataset(tmp_path / "bags").damage
    assert damage.cause == "missing_feature: /joint_states ends before /cam begins"


def written(folder: Path, events: list[tuple[int, str, Any]], cut: int | None = None) -> Path:
    """A bag of messages at times in nanoseconds; cut: the number of one that ends early."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    kinds = {topic: message.__msgtype__ for _, topic, message in events}
    storage = rosbag2.StoragePlugin.MCAP
    with rosbag2.Writer(folder, version=9, storage_plugin=storage) as writer:
        topics = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in kinds.items()}
        for number, (at, topic, message) in enumerate(events):
            raw = STORE.serialize_cdr(message, kinds[topic])
            writer.write(topics[topic], at, raw[:30] if number == cut else raw)
    return folder


def usual(ticks: int = 20) -> list[tuple[int, str, Any]]:
    """Joints and an image ten times a second."""
    return [
        (1_700_000_000 * SECOND + tick * SECOND // 10, topic, message)
        for tick in range(ticks)
        for topic, message in (
            ("/joint_states", joints(np.full(8, tick / 10))),
            ("/cam/image_raw", image(picture(tick))),
        )
    ]


def test_a_camera_that_was_recorded_twice_counts_once(tmp_path: Path) -> None:
    """V-A30's kind: as it is and compressed; other topics of one name keep their whole names."""
    packed = [
        (at, "/cam/image_raw/compressed", TYPES["sensor_msgs/msg/CompressedImage"](
            header(), "jpeg", np.frombuffer(encode_jpeg(picture(0)), np.uint8)
        ))
        for at, topic, _ in usual() if topic == "/cam/image_raw"
    ]  # fmt: skip
    written(tmp_path / "twice/a", usual() + packed)
    dataset = open_dataset(tmp_path / "twice")
    assert dataset.cameras == ("cam",) and step_of(dataset[0].image("cam", 7)) == 7
    assert dataset.unused["/cam/image_raw/compressed"] == "the images of /cam/image_raw once more"
    straight = [(at, "/cam/image_rect_color", m) for at, t, m in usual() if t == "/cam/image_raw"]
    written(tmp_path / "two/a", usual() + straight)
    dataset = open_dataset(tmp_path / "two")
    assert dataset.cameras == ("/cam/image_raw", "/cam/image_rect_color")


def test_arm_and_gripper_in_messages_of_their_own(tmp_path: Path) -> None:
    """Each joint has its newest position, whichever message comes first; rare ones are named."""
    kind = TYPES["sensor_msgs/msg/JointState"]

    def part(names: list[str], value: float) -> Any:
        none = np.zeros(0)
        return kind(header(), names, np.full(len(names), value), none, none)

    events: list[tuple[int, str, Any]] = [(0, "/joint_states", part(["camera_tilt"], 9.0))]
    for tick in range(200):  # the arm at 100 Hz, the gripper at 10 Hz until 1.2 s
        at = tick * SECOND // 100
        if tick % 10 == 0:
            events.append((at, "/cam/image_raw", image(picture(tick // 10))))
            if tick < 130:
                events.append((at, "/joint_states", part(["finger"], tick / 100)))
        events.append((at, "/joint_states", part(["joint_1", "joint_2"], 10 + tick / 100)))
    written(tmp_path / "bags/a", sorted(events, key=lambda event: event[0]))
    dataset = open_dataset(tmp_path / "bags")
    assert dataset.state_names == ("finger", "joint_1", "joint_2")
    assert dataset.unused["/joint_states/camera_tilt"] == "a joint in 1 of 214 messages"
    states = dataset[0].states
    assert np.allclose(states[5], [0.5, 10.5, 10.5]) and np.allclose(states[16], [1.2, 11.6, 11.6])
    assert len(states) == 17 and "2 of 20 steps without a message" in dataset.damage[0].cause


def test_joints_without_names_or_a_moment(tmp_path: Path) -> None:
    kind = TYPES["sensor_msgs/msg/JointState"]
    none = np.zeros(0)
    bare = [
        (at, topic, kind(header(), [], message.position, none, none))
        if topic == "/joint_states" else (at, topic, message)
        for at, topic, message in usual()
    ]  # fmt: skip
    written(tmp_path / "bags/a", bare)
    written(tmp_path / "bags/b", [(0, topic, message) for _, topic, message in usual()])
    written(tmp_path / "bags/c", usual())
    dataset = open_dataset(tmp_path / "bags", damage_budget=1000)
    assert [episode.name for episode in dataset] == ["c"] and dataset.name == "crane_x7"
    assert [damage.cause.partition(": ")[2] for damage in dataset.damage] == [
        "no message on /joint_states with names and positions",
        "all messages are of one moment, which none follows",
    ]


def test_a_clock_that_jumps_takes_no_memory(tmp_path: Path) -> None:
    """Recording that begins before a simulation's clock stamps its first messages with 0."""
    early = [(0, topic, message) for _, topic, message in usual(1)]
    written(tmp_path / "bags/a", early + usual())
    (damage,) = open_dataset(tmp_path / "bags").damage
    assert "17,000,000,020 steps at 10 a second, and 21 messages" in damage.cause
    assert "the clock jumped" in damage.cause


def test_a_message_that_is_cut_off_costs_its_bag(tmp_path: Path) -> None:
    written(tmp_path / "bags/a", usual())
    written(tmp_path / "bags/b", usual(), cut=20)
    dataset = open_dataset(tmp_path / "bags", damage_budget=100)
    (damage,) = dataset.damage
    assert [episode.name for episode in dataset] == ["a"]
    assert damage.cause.startswith("bad_file: a message cannot be read, ") and damage.lost == 20


def test_a_bag_of_ros_1_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.bag"
    file.write_bytes(b"#ROSBAG V2.0\n")
    for place in (tmp_path, file):
        with pytest.raises(UserError, match="run.bag, a bag of ROS 1 .rosbags-convert makes"):
            open_dataset(place)
