"""Datasets that recorders and people leave: each oddity is said, or refused with a sentence."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import crane_cases, lerobot_cases, rlds_cases
from tests.support.lerobot_cases import TOP, TOP_VIDEO, v2, walk
from tests.support.robot_data import crane_episode, rewrite
from workloads.cli import main
from workloads.data import tf_example, tfrecord
from workloads.data.robot import Dataset, open_dataset
from workloads.data.robot.review import missing_steps, remarks
from workloads.errors import UserError

pytestmark = pytest.mark.unit
PROFILE = "profiles/recipes/vla-tiny.yaml"


def said(dataset: Dataset) -> str:
    """All remarks on a dataset, a line each."""
    return "\n".join(remark.text for remark in remarks(dataset))


def frames_found(dataset: Dataset) -> bool:
    """Whether every step has its own frame."""
    return all(
        lerobot_cases.marks(episode.image("top", t)) == (t, number)
        for number, episode in enumerate(dataset)
        for t in range(len(episode))
    )


def test_episodes_of_a_step_or_two(tmp_path: Path) -> None:
    v2(tmp_path, (1, 2, 6))
    dataset = open_dataset(tmp_path)
    assert dataset.lengths.tolist() == [0, 1, 5]
    assert "1 of 3 episodes have no usable step, the first episode_000000" in said(dataset)


def test_a_rate_that_is_no_whole_number(tmp_path: Path) -> None:
    times = np.arange(20) / 29.97
    v2(tmp_path / "in", (20, 20), fps=29.97, each=lambda episode: {"times": times})
    dataset = open_dataset(tmp_path / "in")
    assert dataset.notes == [] and dataset.measured_fps == pytest.approx(29.97, rel=1e-3)
    assert main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert open_dataset(tmp_path / "out").fps == 29.97


@pytest.mark.parametrize(
    ("start", "note"),
    [(5.0, ""), (1.7e9, "do not increase, or are too large"), (np.nan, "do not increase")],
)
def test_times_that_do_not_begin_at_zero(tmp_path: Path, start: float, note: str) -> None:
    """Frames go by their numbers; times since 1970 are too large for float32."""
    v2(tmp_path, (20, 20), TOP_VIDEO, each=lambda episode: {"times": start + np.arange(20) / 10})
    dataset = open_dataset(tmp_path, drop_last_placeholder=False)
    assert frames_found(dataset)
    assert [note in text for text in dataset.notes] == ([True] if note else [])


def test_a_frame_more_than_rows(tmp_path: Path) -> None:
    """By their times where these fit, and no frame by a time that is no number."""
    v2(tmp_path / "more", (20, 20), TOP_VIDEO, shown=21)
    dataset = open_dataset(tmp_path / "more", drop_last_placeholder=False)
    assert frames_found(dataset) and "21 frames for 20 rows" in said(dataset)
    times = np.where(np.arange(20) == 7, np.nan, np.arange(20) / 10)
    v2(tmp_path / "nan", (20,), TOP_VIDEO, shown=21, each=lambda episode: {"times": times})
    with pytest.raises(UserError, match="1 rows with a time over a quarter of a frame"):
        open_dataset(tmp_path / "nan")


def in_mode(mode: str) -> Callable[[Any, int], dict[str, Any]]:
    """Cells of images of one mode of Pillow's, all of another grey."""

    def cell(camera: Any, t: int) -> dict[str, Any]:
        image = Image.new(mode, (64, 48), 8 * t if mode in ("L", "P") else (8 * t, 8 * t, 0, 90))
        return {"bytes": lerobot_cases.png(np.asarray(image)), "path": None}

    return cell


@pytest.mark.parametrize(
    ("mode", "words"),
    [("L", "grey images: red, green"), ("RGBA", "images with an alpha channel: they")],
)
def test_images_that_are_not_plain_colour(tmp_path: Path, mode: str, words: str) -> None:
    v2(tmp_path, (6, 6), each=lambda episode: {"cell": in_mode(mode)} if episode else {})
    assert f"camera top has {words}" in said(open_dataset(tmp_path))


def test_images_with_an_orientation_are_named(tmp_path: Path) -> None:
    """They stay as they are stored, which LeRobot's own loader does otherwise."""
    exif = Image.Exif()
    exif[0x0112] = 6

    def cell(camera: Any, t: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (8 * t, 90, 200)).save(buffer, "PNG", exif=exif)
        return {"bytes": buffer.getvalue(), "path": None}

    v2(tmp_path, (6, 6), each=lambda episode: {"cell": cell} if episode else {})
    words = "camera top has images with an EXIF orientation, which is not applied"
    assert words in said(open_dataset(tmp_path))


def test_videos_that_are_grey(tmp_path: Path) -> None:
    """V-A11's kind: depth under the name of a camera."""
    import av

    v2(tmp_path, (20,), TOP_VIDEO)
    file = next(tmp_path.glob("videos/**/*.mp4"))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for t in range(20):
            pixels = np.full((48, 64), 100 * t, np.uint16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray16le")))
        container.mux(stream.encode())
    assert "camera top has grey videos (gray16le), as depth maps are" in said(
        open_dataset(tmp_path)
    )


def test_instructions_with_line_breaks(tmp_path: Path, capsys: Any) -> None:
    v2(tmp_path, (6, 6), tasks=("pick the\ncube ",))
    dataset = open_dataset(tmp_path)
    assert "1 instructions have line breaks or superfluous spaces, the first" in said(dataset)
    assert main(["data", "inspect", str(tmp_path)]) == 0
    assert "2 x 'pick the\\ncube '" in capsys.readouterr().out
    v2(tmp_path / "ja", (6, 6), tasks=("赤い立方体を　つかむ",))
    assert "line breaks" not in said(open_dataset(tmp_path / "ja"))


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_task_that_is_null_is_no_text(tmp_path: Path, version: str) -> None:
    """V-B08's kind."""
    if version == "v2":
        v2(tmp_path, (6, 6), tasks=(None,))
        file = tmp_path / "meta/episodes.jsonl"
        file.write_text(file.read_text().replace("[null]", "null"))
    else:
        lerobot_cases.v3(tmp_path, ((6, 6),), change=lambda rows: [r | {"tasks": []} for r in rows])
        file = tmp_path / "meta/tasks.parquet"
        table = pq.read_table(file)
        empty = [None]
        pq.write_table(table.set_column(1, "task", [empty]), file)
    assert dict(open_dataset(tmp_path).origins) == {"default": 2}


def test_tasks_as_one_text(tmp_path: Path) -> None:
    """Not the first of its letters."""
    v2(tmp_path, (6, 6))
    file = tmp_path / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('["pick the cube"]', '"pick the cube"'))
    for data in tmp_path.glob("data/**/*.parquet"):
        pq.write_table(pq.read_table(data).drop_columns(["task_index"]), data)
    assert {episode.instruction for episode in open_dataset(tmp_path)} == {"pick the cube"}


@pytest.mark.parametrize(
    ("field", "value"), [("chunks_size", 0), ("total_frames", "many"), ("fps", [10]), ("fps", -10)]
)
def test_fields_of_info_that_make_no_sense(tmp_path: Path, field: str, value: Any) -> None:
    v2(tmp_path, (6, 6), **{field: value})
    with pytest.raises(UserError, match="expected the fields of LeRobot v2.1, found"):
        open_dataset(tmp_path)


def test_other_splits_are_named(tmp_path: Path) -> None:
    v2(tmp_path, (6, 6), splits={"train": "0:1", "test": "1:2"}, total_frames=None)
    assert "splits besides train, test (1:2): episodes of all" in said(open_dataset(tmp_path))


def test_numbers_of_episodes_that_are_far_apart(tmp_path: Path) -> None:
    v2(tmp_path, (6, 6))
    far = tmp_path / "data/chunk-1000/episode_1000000.parquet"
    far.parent.mkdir()
    near = tmp_path / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(near)
    at = table.column_names.index("episode_index")
    pq.write_table(table.set_column(at, "episode_index", [[1_000_000] * 6]), far)
    near.unlink()
    file = tmp_path / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"episode_index": 1', '"episode_index": 1000000'))
    dataset = open_dataset(tmp_path)
    assert [episode.name for episode in dataset] == ["episode_000000", "episode_1000000"]
    assert dataset.lengths.tolist() == [5, 5] and dataset.damage == []


def test_copies_are_named(tmp_path: Path) -> None:
    """A copy may be trained on and held out from itself."""
    crane_cases.write(tmp_path)
    shutil.copytree(tmp_path / "episode_0001", tmp_path / "episode_0009")
    named = "1 episodes have the states and actions of another, the first episode_0009 those of"
    assert f"{named} episode_0001" in said(open_dataset(tmp_path))


@pytest.mark.parametrize("factor", [180 / np.pi, 1000])
def test_an_episode_in_other_units_is_named(tmp_path: Path, factor: float) -> None:
    """V-F08's kind: degrees among radians, mm among m."""
    states = [walk(20, 6) for _ in range(6)]
    states[4] = (states[4] * factor).astype("f4")
    v2(tmp_path, (20,) * 6, each=lambda episode: {"state": states[episode]})
    text = said(open_dataset(tmp_path))
    assert "1 of 6 episodes, the first episode_000004, have actions about" in text
    assert "have states about" in text and "times as large as the others" in text


@pytest.mark.parametrize("kind", ["lerobot v2", "lerobot v3", "rlds", "hdf5"])
def test_nothing_in_a_dataset(tmp_path: Path, kind: str, capsys: Any) -> None:
    if kind == "lerobot v2":
        v2(tmp_path, ())
    elif kind == "lerobot v3":
        lerobot_cases.v3(tmp_path, ((6, 6),), change=None)
        file = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    elif kind == "rlds":
        rlds_cases.write(tmp_path, rlds_cases.USUAL, [])
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "demos.hdf5", "w") as root:
            root.create_group("data")
    assert "expected at least one usable step, found none" in str(
        missing_steps(open_dataset(tmp_path))
    )
    assert main(["data", "inspect", str(tmp_path), "--output", str(tmp_path / "look")]) == 1
    assert main(["check", "--deep", PROFILE, f"data.source={tmp_path}"]) == 2
    assert "found none" in capsys.readouterr().out


def test_a_value_far_from_all_others_is_named(tmp_path: Path) -> None:
    states = [walk(20, 6) for _ in range(3)]
    states[1][3, 2] = 1e30
    v2(tmp_path, (20,) * 3, each=lambda episode: {"state": states[episode]})
    text = said(open_dataset(tmp_path))
    assert "state joint_2.pos: 1 values are far from all others, the first 1e+30 at step 3" in text


def test_actions_that_never_change_are_named(tmp_path: Path) -> None:
    v2(tmp_path, (8,), each=lambda episode: {"state": np.ones((8, 6), "f4")})
    assert "actions never change" in said(open_dataset(tmp_path, drop_last_placeholder=False))


def test_images_of_several_sizes_are_named(tmp_path: Path) -> None:
    def small(camera: str, t: int) -> dict[str, Any]:
        return {"bytes": lerobot_cases.png(np.zeros((30, 50, 3), np.uint8)), "path": None}

    v2(tmp_path, (6, 6), each=lambda episode: {"cell": small} if episode else {})
    sizes = "64 x 48 in episode_000000, 50 x 30 in episode_000001"
    assert f"camera top has images of several sizes: {sizes}" in said(open_dataset(tmp_path))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((48, 64, 3), np.uint8), "images of one colour alone"),
        (lerobot_cases.pixels(1, 3), "the same image at the first, middle and last step"),
    ],
)
def test_cameras_that_show_nothing_are_named(tmp_path: Path, image: np.ndarray, words: str) -> None:
    def cell(camera: str, t: int) -> dict[str, Any]:
        return {"bytes": lerobot_cases.png(image), "path": None}

    v2(tmp_path, (6, 6), each=lambda episode: {"cell": cell})
    assert f"camera top has {words}" in said(open_dataset(tmp_path))


def test_vectors_that_are_no_lists_of_numbers(tmp_path: Path) -> None:
    v2(tmp_path, (20,))
    (file,) = tmp_path.glob("data/**/*.parquet")
    table = pq.read_table(file)
    at = table.column_names.index("action")
    arms = [[row[:3], row[3:]] for row in table["action"].to_pylist()]
    pq.write_table(table.set_column(at, "action", [arms]), file)
    with pytest.raises(UserError, match="action holds list<.*, expected a list of numbers a row"):
        open_dataset(tmp_path)


def test_fewer_texts_than_steps_are_no_instructions(tmp_path: Path) -> None:
    """V-B14's kind: nobody knows which steps each text is of."""
    texts = {"steps/language_instruction": [b"open it", b"close it"]}
    rlds_cases.write(tmp_path, rlds_cases.USUAL, [rlds_cases.episode(0, texts)])
    (damage,) = open_dataset(tmp_path).damage
    assert damage.cause == "wrong_dim: 2 texts of steps/language_instruction for 12 steps"


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    """V-A10's kind: an episode whose content is elsewhere is lost, whatever else is there."""
    crane_cases.write(tmp_path)
    (tmp_path / "episode_0001/again").symlink_to(tmp_path)
    (tmp_path / "episode_0003").symlink_to("/nowhere/episode_0003")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 3
    assert dataset.unused["episode_0003"].startswith("a link to /nowhere/episode_0003")
    file = tmp_path / "episode_0002/episode_data.tfrecord"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(UserError, match="episode_0002/episode_data.tfrecord is a link to"):
        open_dataset(tmp_path)


def test_two_rates_of_crane_x7(tmp_path: Path) -> None:
    """V-A07's kind: by the timestamps of the records, and by the meta.json of the episodes."""

    def step(number: int, states: np.ndarray) -> dict[str, Any]:
        time = np.array([5 + number / 30], np.float32)
        return crane_cases.usual(number, states) | {"observation/timestamp": time}

    crane_cases.write(tmp_path, step)
    dataset = open_dataset(tmp_path)
    assert "the format says 10 Hz, the timestamps of the steps say 30 Hz" in said(dataset)
    for number, fps in enumerate((10, 30)):
        (tmp_path / f"episode_{number:04d}/meta.json").write_text(json.dumps({"fps": fps}))
    assert "state several rates, 10, 30 Hz: 10 Hz stands for all" in said(open_dataset(tmp_path))


def test_depth_by_its_name_is_no_camera_of_crane_x7(tmp_path: Path) -> None:
    """V-A11's kind."""
    crane_cases.write(tmp_path)
    for file in tmp_path.rglob("*.tfrecord"):
        steps = [tf_example.parse(record) for record in tfrecord.read(file)]
        own = [{key: feature.values for key, feature in step.items()} for step in steps]
        image = "observation/image"
        records = [tf_example.build(s | {f"{image}_depth": s[image]}) for s in own]
        tfrecord.write(file, records)
    dataset = open_dataset(tmp_path)
    assert dataset.cameras == ("primary",)
    assert dataset.unused["observation/image_depth"] == "no colour camera: depth"


def test_the_same_joints_in_another_order_are_not_mixed(tmp_path: Path, capsys: Any) -> None:
    for name in ("a", "b"):
        v2(tmp_path / name, (8, 8), TOP)

    def turned(features: dict[str, Any]) -> None:
        for key in ("action", "observation.state"):
            features[key]["names"].reverse()

    lerobot_cases.edit(tmp_path / "b", turned)
    mixed = f"data.mixed_with=[{{source: {tmp_path / 'b'}}}]"
    assert main(["check", "--deep", PROFILE, f"data.source={tmp_path / 'a'}", mixed]) == 2
    assert "data.mixed_with: expected the actions of" in capsys.readouterr().out


def test_options_that_change_nothing_are_told(tmp_path: Path) -> None:
    v2(tmp_path / "in", (8, 8))
    dataset = open_dataset(tmp_path / "in", instruction="take it")
    assert "all episodes have an instruction: 'take it' is not used" in said(dataset)
    with pytest.raises(UserError, match="revision: expected a dataset's name on the hub, found"):
        open_dataset(tmp_path / "in", revision="v1.2")
    crane_cases.write(tmp_path / "logs")
    for folder in (tmp_path / "logs").iterdir():
        (folder / "meta.json").write_text(json.dumps({"image_color_order": "rgb"}))
    dataset = open_dataset(tmp_path / "logs", color_order="bgr")
    assert "color_order is set to bgr, meta.json says rgb: that counts" in said(dataset)
    assert "color_order" not in said(open_dataset(tmp_path / "logs", color_order="rgb"))


def test_what_recordings_say_in_several_ways_is_told(tmp_path: Path) -> None:
    files = [crane_episode(tmp_path / f"episode_{number}", 6, seed=number) for number in range(3)]
    assert open_dataset(tmp_path).notes == [] and open_dataset(tmp_path).unused == {}
    rewrite(files[1], {t: {"dataset_name": "other_arm"} for t in range(6)})
    rewrite(files[2], {t: {"observation/timestep": np.array([t + 3 * (t > 2)])} for t in range(6)})
    np.savez(files[0].with_suffix(".npz"), states=np.zeros((5, 8)), actions=np.zeros((5, 8)))
    dataset = open_dataset(tmp_path)
    assert "several datasets, crane_x7, other_arm: crane_x7 stands for all" in said(dataset)
    text = "1 episodes have timesteps that do not count up one by one, the first episode_2, where"
    assert f"{text} 6 comes after 2: their records" in said(dataset)
    assert dataset.unused == {"*.npz": "1 episodes whose TFRecord beside it is read"}
