"""HDF5 demonstrations in the layouts of robomimic, LIBERO and ALOHA."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.support.robot_data import picture, step_of, vectors
from workloads.cli import main
from workloads.data.robot import open_dataset
from workloads.data.robot.images import encode_jpeg
from workloads.errors import UserError

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.unit


def robomimic(file: Path, steps: int = 6, demos: int = 3, **attributes: str) -> Path:
    """`data/demo_N` with obs and actions, as robomimic and LIBERO write them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as root:
        data = root.create_group("data")
        data.attrs.update(attributes)
        for number in [*range(1, demos), 0]:  # in no order
            group = data.create_group(f"demo_{number}")
            group["actions"] = vectors(steps, number, 7).astype(np.float64)
            group["dones"] = np.zeros(steps, np.int64)
            frames = np.stack([picture(t) for t in range(steps)])
            group.create_dataset("obs/agentview_rgb", data=frames, compression="gzip")
            group["obs/agentview_depth"] = np.zeros((steps, 24, 32, 1), np.float32)
            group["obs/ee_states"] = vectors(steps, number, 6)
            group["obs/gripper_states"] = vectors(steps, number + 9, 2)
    return file


def aloha(file: Path, steps: int = 6, padded: bool = False) -> Path:
    """One episode a file; padded: images as JPEG, filled up to one length."""
    file.parent.mkdir(parents=True, exist_ok=True)
    frames = [picture(t) for t in range(steps)]
    with h5py.File(file, "w") as root:
        root["action"] = vectors(steps, 1, 14)
        root["observations/qpos"] = vectors(steps, 2, 14)
        root["observations/qvel"] = vectors(steps, 3, 14)
        for camera in ("cam_high", "cam_left_wrist"):
            if padded:
                jpegs = [np.frombuffer(encode_jpeg(frame), np.uint8) for frame in frames]
                longest = max(len(jpeg) for jpeg in jpegs)
                rows = [np.pad(jpeg, (0, longest - len(jpeg))) for jpeg in jpegs]
                root[f"observations/images/{camera}"] = np.stack(rows)
            else:
                root[f"observations/images/{camera}"] = np.stack(frames)
    return file


def test_libero(tmp_path: Path) -> None:
    info = json.dumps({"language_instruction": "open the drawer"})
    facts = json.dumps({"env_kwargs": {"control_freq": 20}})
    robomimic(tmp_path / "set/open_demo.hdf5", demos=11, problem_info=info, env_args=facts)
    dataset = open_dataset(tmp_path / "set")
    assert dataset.format == "hdf5" and dataset.fps == 20 and dataset.cameras == ("agentview",)
    assert [episode.name for episode in dataset][:3] == [f"open_demo/demo_{n}" for n in range(3)]
    assert dataset[10].name == "open_demo/demo_10"
    assert {episode.instruction for episode in dataset} == {"open the drawer"}
    episode = dataset[2]
    assert np.array_equal(episode.actions, vectors(6, 2, 7)) and episode.states.shape == (6, 8)
    assert [step_of(episode.image("agentview", t)) for t in (5, 0, 3)] == [5, 0, 3]
    assert dataset.unused["obs/agentview_depth"] == "no colour camera: depth"
    assert "upside down" in dataset.notes[0] and dataset.verify() == []


@pytest.mark.parametrize("padded", [False, True])
def test_aloha(tmp_path: Path, padded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        aloha(tmp_path / f"set/episode_{number}.hdf5", padded=padded)
    dataset = open_dataset(tmp_path / "set", instruction="cut the tape")
    assert dataset.cameras == ("cam_high", "cam_left_wrist") and len(dataset) == 2
    episode = pickle.loads(pickle.dumps(dataset))[1]
    assert episode.actions.shape == episode.states.shape == (6, 14)
    assert [step_of(episode.image("cam_high", t)) for t in (4, 1)] == [4, 1]
    assert (episode.encoded("cam_high", 0) is not None) == padded
    assert "observations/qvel" in dataset.unused
    assert main(["data", "inspect", str(tmp_path / "set")]) == 1
    assert "no text in 2 episodes" in capsys.readouterr().out
    out = tmp_path / "out"
    words = ["--instruction", "cut the tape", "--fps", "50"]
    assert main(["data", "convert", str(tmp_path / "set"), str(out), *words]) == 0
    assert open_dataset(out)[1].instruction == "cut the tape"


def test_instructions_of_its_own(tmp_path: Path) -> None:
    file = aloha(tmp_path / "episode_0.hdf5")
    with h5py.File(file, "a") as root:
        root["language_raw"] = np.array([b"cut the tape"])
        root["subtask"] = np.array([b"reach", b"reach", b"cut", b"cut", b"cut", b"cut"])
    assert open_dataset(file)[0].instruction == "cut the tape"
    episode = open_dataset(file, instruction_key="subtask")[0]
    assert [episode.instruction_at(t) for t in (0, 2)] == ["reach", "cut"]
    with pytest.raises(UserError, match="found none; there are: language_raw, subtask"):
        open_dataset(file, instruction_key="goal")


def test_what_cannot_be_read_weighs_what_the_others_hold(tmp_path: Path) -> None:
    for number in range(3):
        robomimic(tmp_path / f"set/{number}.hdf5", language_instruction="open it")
    broken = tmp_path / "set/1.hdf5"
    broken.write_bytes(broken.read_bytes()[:500])
    with h5py.File(tmp_path / "set/2.hdf5", "a") as root:
        del root["data/demo_1/actions"]
        root["data/demo_2/actions"][3, 0] = np.nan
    dataset = open_dataset(tmp_path / "set", damage_budget=20)
    assert sorted((d.trouble, d.lost) for d in dataset.damage) == [
        ("bad_file", 6), ("missing_feature", 6), ("non_finite", 1),
    ]  # fmt: skip
    assert [len(episode) for episode in dataset] == [6, 6, 6, 6, 5]
    with pytest.raises(UserError, match="expected vectors for state_keys, found no 'obs/joints'"):
        open_dataset(tmp_path / "set", state_keys=["obs/joints"])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    file = aloha(tmp_path / "episode_0.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"expected the package h5py.*pip install 'tatara\[hdf5\]'"):
        open_dataset(file)


@pytest.mark.parametrize("count", [5, 7])
def test_another_number_of_images_than_actions(tmp_path: Path, count: int) -> None:
    """V-A21's kind: nobody knows which step each image is of, and one line says so."""
    file = robomimic(tmp_path / "set.hdf5")
    with h5py.File(file, "a") as root:
        del root["data/demo_1/obs/agentview_rgb"]
        root["data/demo_1/obs/agentview_rgb"] = np.zeros((count, 24, 32, 3), np.uint8)
        root["mask/train"] = np.array([b"demo_0"])
    dataset = open_dataset(tmp_path)
    assert [episode.name for episode in dataset] == ["set/demo_0", "set/demo_2"]
    (damage,) = dataset.damage
    assert f"{count} images of obs/agentview_rgb for 6 actions" in damage.cause
    assert damage.lost == 6 and "mask/train list demonstrations" in dataset.notes[0]


def test_what_is_no_demonstration_or_has_no_step(tmp_path: Path) -> None:
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        root["data/readme"] = np.array([1])
        del root["data/demo_2"]
        root["data/demo_2/actions"] = np.zeros((0, 7))
        root["data/demo_2/obs/agentview_rgb"] = np.zeros((0, 24, 32, 3), np.uint8)
        root["data/demo_2/obs/ee_states"] = np.zeros((0, 6))
        root["data/demo_2/obs/gripper_states"] = np.zeros((0, 2))
    dataset = open_dataset(tmp_path)
    assert dataset.lengths.tolist() == [6, 6, 0] and dataset.damage == []
    assert dataset.unused["data/readme"] == "no demonstration"


def test_attributes_that_are_no_texts_are_no_instructions(tmp_path: Path) -> None:
    """V-B08's kind: neither the notation of a number nor letters that stand in for broken ones."""
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        root["data"].attrs["language_instruction"] = h5py.Empty("S10")
        root["data"].attrs["task"] = 3
        root["data/demo_1"].attrs["language_instruction"] = np.array(
            ["open it"], h5py.string_dtype()
        )
        root["data/demo_2"].attrs["language_instruction"] = np.bytes_(b"ouvre le caf\xe9")
    dataset = open_dataset(tmp_path)
    assert [(e.said.origin, e.instruction) for e in dataset][1] == ("recorded", "open it")
    assert dict(dataset.origins) == {"default": 1, "recorded": 1}
    (damage,) = dataset.damage
    assert "data/demo_2 cannot be used, language_instruction is not UTF-8" in damage.cause


@pytest.mark.parametrize("stored", ["S", "V", "vlen"])
def test_images_as_bytes_of_any_type(tmp_path: Path, stored: str) -> None:
    """RoboTwin's layout, too: a folder for each camera."""
    jpegs = [encode_jpeg(picture(t)) for t in range(6)]
    with h5py.File(tmp_path / "episode0.hdf5", "w") as root:
        root["joint_action/vector"] = vectors(6, 1, 14)
        if stored == "vlen":
            images = root.create_dataset(
                "observation/head_camera/rgb", (6,), h5py.vlen_dtype(np.uint8)
            )
            for t, jpeg in enumerate(jpegs):
                images[t] = np.frombuffer(jpeg, np.uint8)
        else:
            longest = max(len(jpeg) for jpeg in jpegs)
            padded = [jpeg.ljust(longest, b"\0") for jpeg in jpegs]
            root["observation/head_camera/rgb"] = np.array(padded, f"{stored}{longest}")
    dataset = open_dataset(tmp_path, action_keys=["joint_action/vector"])
    assert dataset.cameras == ("head_camera",) and dataset.text_keys == ()
    assert [step_of(dataset[0].image("head_camera", t)) for t in (5, 0, 3)] == [5, 0, 3]


def test_the_order_of_colours_of_encoded_images_is_asked_for(tmp_path: Path) -> None:
    """Recorders that hand RGB to OpenCV exchange red and blue, and nothing in the file says so."""
    file = aloha(tmp_path / "episode_0.hdf5", padded=True)
    assert "set data.color_order to rgb, or to bgr" in open_dataset(file).notes[0]
    assert open_dataset(file, color_order="rgb").notes == []
    assert open_dataset(aloha(tmp_path / "raw.hdf5")).notes == []


def test_one_image_that_is_damaged_is_no_other_camera(tmp_path: Path) -> None:
    file = aloha(tmp_path / "episode_0.hdf5", padded=True)
    with h5py.File(file, "a") as root:
        root["observations/images/cam_high"][0] = 0
    dataset = open_dataset(file)
    assert dataset.cameras == ("cam_high", "cam_left_wrist")
    assert [item.trouble for item in dataset.verify()] == ["bad_image"]


def test_demonstrations_at_other_places(tmp_path: Path) -> None:
    """In a group for each task, or at the top as ManiSkill writes them."""
    with h5py.File(robomimic(tmp_path / "set.hdf5", demos=11), "a") as root:
        for number in (3, 10):
            root.move(f"data/demo_{number}", f"data/task_1/demo_{number}")
    dataset = open_dataset(tmp_path)
    names = [episode.name for episode in dataset]
    assert names[-2:] == ["set/task_1/demo_3", "set/task_1/demo_10"] and len(dataset) == 11
    assert dataset.damage == []
    with h5py.File(tmp_path / "set.hdf5", "a") as root:
        for number in range(2):
            root.move(f"data/demo_{number}", f"traj_{number}")
        del root["data"]
    assert [episode.name for episode in open_dataset(tmp_path)] == ["set/traj_0", "set/traj_1"]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        root["data/demo_2/soft"] = h5py.SoftLink("/nowhere")
        root["data/lost"] = h5py.ExternalLink("other.hdf5", "/data/demo_0")
    dataset = open_dataset(tmp_path)
    assert dataset.lengths.tolist() == [6, 6, 6] and "data/lost" not in dataset.unused
    (damage,) = dataset.damage
    assert damage.cause == "missing_file: data/lost links to what is not there"
    assert damage.lost == 6


@pytest.mark.parametrize(
    ("actions", "words"),
    [(np.float64(3), "actions holds one value"), (np.array([b"up"] * 6), "could not convert")],
)
def test_actions_that_are_no_vectors(tmp_path: Path, actions: np.ndarray, words: str) -> None:
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        del root["data/demo_1/actions"]
        root["data/demo_1/actions"] = actions
    (damage,) = open_dataset(tmp_path).damage
    assert f"data/demo_1 cannot be used, {words}" in damage.cause


def test_wide_bytes_are_no_images(tmp_path: Path) -> None:
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        for number in range(3):
            root[f"data/demo_{number}/obs/tactile"] = np.full((6, 100), number, np.uint8)
    dataset = open_dataset(tmp_path)
    assert dataset.cameras == ("agentview",) and dataset.unused["obs/tactile"] == "uint8 [100]"


def test_cameras_of_one_name_keep_their_whole_names(tmp_path: Path) -> None:
    """V-A30's kind: none takes the place of the other."""
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        for number in range(3):
            root[f"data/demo_{number}/obs/agentview_image"] = np.zeros((6, 24, 32, 3), np.uint8)
    assert open_dataset(tmp_path).cameras == ("obs/agentview_image", "obs/agentview_rgb")


def test_another_number_of_steps_than_the_attributes_say(tmp_path: Path) -> None:
    """V-A32's kind."""
    with h5py.File(robomimic(tmp_path / "set.hdf5"), "a") as root:
        root["data/demo_1"].attrs["num_samples"] = 20
        root["data/demo_2"].attrs["num_samples"] = 6
    (note,) = open_dataset(tmp_path).notes
    assert note.startswith("1 demonstrations have another number of steps than their num_samples")
    assert note.endswith("the first is data/demo_1: 20 said, 6 found")
