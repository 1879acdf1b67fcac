"""LeRobot datasets as editing, merging and other writers leave them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import lerobot_cases
from tests.support.lerobot_cases import TOP_VIDEO, edit, pixels, put, v2, v3
from workloads.cli import main
from workloads.data.robot import Dataset, open_dataset
from workloads.errors import UserError

pytestmark = pytest.mark.unit
KEY = "observation.images.top"


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for file in root.glob("data/**/*.parquet"):
        pq.write_table(change(pq.read_table(file)), file)


def instructions(dataset: Dataset) -> set[str]:
    return {text for episode in dataset for text in episode.instructions}


@pytest.mark.parametrize(
    "columns",
    [
        {"task_index": [0], "category": ["kitchen"], "task": ["pick the cube"]},
        {"category": ["kitchen"], "task_index": [0], "__index_level_0__": ["pick the cube"]},
        {"number": [7], "what": ["pick the cube"], "task_index": [0]},
    ],
)
def test_the_column_of_tasks_is_known_by_its_name(tmp_path: Path, columns: dict[str, Any]) -> None:
    """V-B01's kind: not whatever stands first."""
    v3(tmp_path, ((6, 6),))
    pq.write_table(pa.table(columns), tmp_path / "meta/tasks.parquet")
    assert instructions(open_dataset(tmp_path)) == {"pick the cube"}


@pytest.mark.parametrize(
    "columns",
    [
        {"task_index": [0], "category": ["kitchen"], "what": ["pick the cube"]},
        {"task_index": [0], "task": ["push"], "__index_level_0__": ["pick the cube"]},
        {"task_index": [0], "number": [7]},
    ],
)
def test_tasks_that_have_several_texts_or_none(tmp_path: Path, columns: dict[str, Any]) -> None:
    v3(tmp_path, ((6, 6),))
    pq.write_table(pa.table(columns), tmp_path / "meta/tasks.parquet")
    with pytest.raises(UserError, match="expected task_index and one column of texts, found"):
        open_dataset(tmp_path)


def test_a_task_that_is_no_text(tmp_path: Path) -> None:
    """Its notation in Python is no instruction."""
    v2(tmp_path, (6, 6))
    put(tmp_path / "meta/tasks.jsonl", [{"task_index": 0, "task": ["pick the cube"]}])
    assert instructions(open_dataset(tmp_path)) == {"pick the cube"}
    put(tmp_path / "meta/tasks.jsonl", [{"task_index": 0, "task": {"en": "pick the cube"}}])
    with pytest.raises(UserError, match=r"found \{'en': 'pick the cube'\} where a text"):
        open_dataset(tmp_path)
    # Not even printed: no encoding has it.
    put(tmp_path / "meta/tasks.jsonl", [{"task_index": 0, "task": "pick \ud83d"}])
    assert main(["data", "inspect", str(tmp_path)]) == 2


def test_several_tasks_of_an_episode_without_numbers_in_its_rows(tmp_path: Path) -> None:
    """V-A09's kind: which step has which is not known."""
    v2(tmp_path, (6, 6))
    rewrite(tmp_path, lambda table: table.drop_columns(["task_index"]))
    tasks = ["open the drawer", "close the drawer"]
    rows = [{"episode_index": number, "tasks": tasks, "length": 6} for number in range(2)]
    put(tmp_path / "meta/episodes.jsonl", rows)
    (note,) = open_dataset(tmp_path).notes
    assert note.startswith("2 episodes list several tasks, and no task_index says which row")
    assert "'open the drawer' stands for all" in note


def test_conversion_tells_what_was_chosen(tmp_path: Path, capsys: Any) -> None:
    """V-B01's kind: a copy no longer says what stood in for what."""
    v2(tmp_path / "in", (6, 6))
    rewrite(tmp_path / "in", lambda table: table.drop_columns(["task_index"]))
    rows = [{"episode_index": e, "tasks": ["open it", "close it"], "length": 6} for e in range(2)]
    put(tmp_path / "in/meta/episodes.jsonl", rows)
    assert main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "note: 2 episodes list several tasks" in capsys.readouterr().out
    words = ["data", "convert", str(tmp_path / "in"), str(tmp_path / "logs"), "--to", "crane-x7"]
    assert main(words) == 0
    assert "not written: names of dimensions (joint_0.pos, " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["large_string", "dictionary", "list of one"])
def test_instructions_in_a_column_of_another_type(tmp_path: Path, kind: str) -> None:
    texts: dict[str, pa.Array] = {
        "large_string": pa.array(["push"] * 6, pa.large_string()),
        "dictionary": pa.array(["push"] * 6).dictionary_encode(),
        "list of one": pa.array([["push"]] * 6),
    }
    v2(tmp_path, (6, 6))
    rewrite(tmp_path, lambda table: table.append_column("said", texts[kind]))
    edit(tmp_path, lambda features: features.update(said={"dtype": "string", "shape": [1]}))
    assert instructions(open_dataset(tmp_path, instruction_key="said")) == {"push"}


def test_a_list_of_texts_is_no_instruction(tmp_path: Path) -> None:
    v2(tmp_path, (6,))
    rewrite(tmp_path, lambda table: table.append_column("said", pa.array([["push", "it"]] * 6)))
    edit(tmp_path, lambda features: features.update(said={"dtype": "string", "shape": [2]}))
    (damage,) = open_dataset(tmp_path, instruction_key="said").damage
    assert "['push', 'it'] where a text is expected" in damage.cause and damage.lost == 6


def test_cameras_of_one_name_keep_their_whole_names(tmp_path: Path) -> None:
    """V-A30's kind: none takes the place of the other."""
    v2(tmp_path, (6, 6), {KEY: "image", "observation.top": "image"})
    assert open_dataset(tmp_path).cameras == (KEY, "observation.top")


def test_columns_that_the_meta_data_does_not_list_are_named(tmp_path: Path) -> None:
    v2(tmp_path, (6, 6))
    rewrite(tmp_path, lambda table: table.append_column("language", pa.array(["push"] * 6)))
    unused = open_dataset(tmp_path).unused
    assert unused == {"language": "a column that meta/info.json does not list"}


def test_names_in_lists_of_lists(tmp_path: Path) -> None:
    """V-A27's kind."""
    v2(tmp_path, (6, 6))
    joints = [f"j{number}" for number in range(6)]
    arms = {"arms": {"left": ["a", "b", "c"], "right": ["a", "b", "c"]}}

    def change(features: dict[str, Any]) -> None:
        features["action"]["names"] = [joints]
        features["observation.state"]["names"] = arms

    edit(tmp_path, change)
    dataset = open_dataset(tmp_path)
    assert dataset.action_names == tuple(joints)
    assert dataset.state_names == ("left_a", "left_b", "left_c", "right_a", "right_b", "right_c")


def test_a_folder_of_datasets_names_them(tmp_path: Path) -> None:
    """V-G01's kind."""
    for name in ("a", "owner/b"):
        v2(tmp_path / name, (6,))
    with pytest.raises(UserError, match=f"below it, {tmp_path}/a, {tmp_path}/owner/b .name one"):
        open_dataset(tmp_path)


def test_videos_without_a_path(tmp_path: Path) -> None:
    v2(tmp_path, (6,), TOP_VIDEO, video_path=None)
    with pytest.raises(UserError, match=f"found a video_path of None in info.json, and {KEY}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("value", "is_read"), [(0.0, True), ([0], True), (0.5, False), ("0", False)]
)
def test_numbers_of_files_as_data_frames_write_them(
    tmp_path: Path, value: Any, is_read: bool
) -> None:
    v3(tmp_path, ((6, 6),), change=lambda rows: [r | {"data/file_index": value} for r in rows])
    if is_read:
        assert len(open_dataset(tmp_path)) == 2
    else:
        with pytest.raises(UserError, match=f"found {value!r} in the column data/file_index"):
            open_dataset(tmp_path)


def test_another_size_than_the_meta_data_says(tmp_path: Path) -> None:
    """V-A25's kind."""
    v2(tmp_path, (6, 6))
    edit(tmp_path, lambda features: features["action"].update(shape=[7], names=None))
    (note,) = open_dataset(tmp_path).notes
    assert note == "meta/info.json says 7 numbers for action, the rows have 6"


def test_rows_of_another_episode_in_a_file_are_named(tmp_path: Path) -> None:
    """V-A31's kind: episodes that were given new numbers in one place only."""
    v2(tmp_path, (20, 20))
    file = tmp_path / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("episode_index")
    pq.write_table(table.set_column(at, "episode_index", [[7] * 20]), file)
    (damage,) = open_dataset(tmp_path, damage_budget=1000).damage
    assert damage.cause.endswith("0 found; the file has rows of episode 7")


@pytest.mark.parametrize("kind", ["bytes", "paths", "pixels"])
def test_images_in_a_column_of_another_type(tmp_path: Path, kind: str) -> None:
    """V-A13's kind: most writers make a struct of bytes and path."""
    lerobot_cases.CASES["V-A13"](tmp_path)

    def change(table: pa.Table) -> pa.Table:
        number = table["episode_index"][0].as_py()
        cells: pa.Array = table[KEY].combine_chunks().field("path")
        if kind == "bytes":
            cells = pa.array([lerobot_cases.png(pixels(number, t)) for t in range(8)])
        if kind == "pixels":
            cells = pa.array([pixels(number, t).tolist() for t in range(8)])
        return table.set_column(table.column_names.index(KEY), KEY, cells)

    rewrite(tmp_path, change)
    dataset = open_dataset(tmp_path)
    if kind == "pixels":
        causes = {damage.cause for damage in dataset.verify()}
        assert len(causes) == 1 and "expected bytes or paths of images" in causes.pop()
    else:
        assert [lerobot_cases.marks(dataset[1].image("top", t)) for t in (5, 0)] == [(5, 1), (0, 1)]


def test_missing_image_files_are_one_sentence(tmp_path: Path, capsys: Any) -> None:
    lerobot_cases.CASES["V-A13"](tmp_path)
    shutil.rmtree(tmp_path / "images")
    assert main(["data", "inspect", str(tmp_path)]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "no image" in line]
    assert len(said) == 2  # all of them, and why a training would refuse them
    assert said[0].startswith("  16 like these in 2 files: ")
    for number in range(3):
        assert f"no image frame_00000{number}.png" in said[0]


def test_frames_that_an_edit_list_leaves_out_are_not_counted(tmp_path: Path) -> None:
    """V-A04's kind: the header counts all frames, as many as there are rows."""
    v2(tmp_path, (20,), TOP_VIDEO)
    (file,) = tmp_path.glob("videos/**/*.mp4")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t in range(20):
            frame = av.VideoFrame.from_ndarray(pixels(0, t), format="rgb24")
            frame.pts = t - 5  # what lies before 0 is not shown
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (damage,) = open_dataset(tmp_path, damage_budget=1000).damage
    assert damage.cause.startswith("bad_image: 15 frames for 20 rows") and damage.lost == 20


def test_a_camera_with_a_slash_is_written_as_lerobot_can_read_it(
    tmp_path: Path, capsys: Any
) -> None:
    """LeRobot flattens its statistics with "/"."""
    v2(tmp_path / "in", (6, 6), {"observation.images.cam/front": "image"})
    assert main(["data", "convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "camera cam/front: written as cam.front" in capsys.readouterr().out
    features = json.loads((tmp_path / "out/meta/info.json").read_text())["features"]
    assert "observation.images.cam.front" in features
    assert open_dataset(tmp_path / "out").cameras == ("cam.front",)
    v2(tmp_path / "two", (6,), {f"observation.images.a{mark}b": "image" for mark in "./"})
    assert main(["data", "convert", str(tmp_path / "two"), str(tmp_path / "none")]) == 2
    assert "choose some with --cameras" in capsys.readouterr().err
