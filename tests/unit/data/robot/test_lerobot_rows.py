"""Rows and meta data of LeRobot datasets that do not agree: named, and never slid together."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import lerobot_cases
from workloads.data.robot import open_dataset
from workloads.data.robot.inspect import inspect

pytestmark = pytest.mark.unit
FILE = "data/chunk-000/episode_000000.parquet"
FLOATS = pa.list_(pa.float32())


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(root / FILE)), root / FILE)


def put_actions(root: Path, rows: Sequence[Any], kind: pa.DataType) -> None:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("action")
        return table.set_column(place, "action", pa.array(rows, kind))

    rewrite(root, change)


def text_of(found: dict[str, Any]) -> str:
    return " | ".join(remark["text"] for remark in found["remarks"])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (FLOATS, {3: [0.0] * 7, 4: [0.0] * 5}),  # together as long as two rows
        (FLOATS, {2: None, 5: []}),
        (pa.list_(pa.float32(), 6), {5: None}),
        (pa.large_list(pa.float64()), {1: None}),
        (FLOATS, {number: None for number in (0, 2, 4)}),
    ],
)
def test_vectors_of_other_sizes_lose_their_rows_alone(
    tmp_path: Path, kind: pa.DataType, wrong: dict[int, Any]
) -> None:
    """V-A25: a row whose vector is missing, short or long is damage; the others keep their own."""
    lerobot_cases.v2(tmp_path, [8, 8])
    rows = np.arange(48, dtype=np.float32).reshape(8, 6).tolist()
    put_actions(tmp_path, [wrong.get(number, row) for number, row in enumerate(rows)], kind)
    dataset = open_dataset(tmp_path)
    assert [damage.record for damage in dataset.damage] == sorted(wrong)
    assert {damage.trouble for damage in dataset.damage} == {"wrong_dim"}
    first = dataset[0]
    assert first.rows.tolist() == [number for number in range(8) if number not in wrong]
    assert np.array_equal(first.actions, np.array(rows, np.float32)[first.rows])


def test_rows_of_an_episode_that_lie_apart_are_its_own(tmp_path: Path) -> None:
    lerobot_cases.v3(tmp_path, [[6, 6]])
    before = [(episode, episode.image("top", 4)) for episode in open_dataset(tmp_path)]
    file = next((tmp_path / "data").rglob("*.parquet"))
    order = [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    pq.write_table(pq.read_table(file).take(order), file)
    dataset = open_dataset(tmp_path)
    for now, (then, image) in zip(dataset, before, strict=True):
        assert np.array_equal(now.states[:3], then.states[:3])
        assert np.array_equal(now.actions[-2:], then.actions[-2:])
        assert np.array_equal(now.image("top", 4), image)
    assert "2 episodes have rows out of order" in dataset.notes[0]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0, 1, 3, 2, 4, 5, 6, 7], "frame_index 2 comes after 3"),
        ([*range(8), 4, 5], "frame_index 4 comes after 7"),
        ([0, 1, 1, 2, 3, 4, 5, 6, 7], "frame_index 1 comes after 1"),
    ],
)
def test_rows_out_of_order_are_named(tmp_path: Path, order: list[int], said: str) -> None:
    lerobot_cases.v2(tmp_path, [8, 8])
    assert open_dataset(tmp_path).notes == []
    rewrite(tmp_path, lambda table: table.take(order))
    assert said in " ".join(open_dataset(tmp_path).notes)


@pytest.mark.parametrize("tasks", [[0] * 4 + [7] * 4, [-1] * 8, [1] * 8, [0] * 7 + [None]])
def test_tasks_without_a_text_are_counted(tmp_path: Path, tasks: list[int | None]) -> None:
    """V-B01, V-A09: what stands in for a text is never silent."""
    lerobot_cases.v2(tmp_path, [8, 8], tasks=("pick the cube", "  "))

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("task_index")
        return table.set_column(place, "task_index", pa.array(tasks, pa.int64()))

    rewrite(tmp_path, change)
    silent = [number for number in tasks if number != 0]
    (note,) = open_dataset(tmp_path).notes
    assert (
        f"{len(silent)} rows have a task_index without a text in meta/tasks ({silent[0]})" in note
    )


def test_totals_that_the_list_of_episodes_does_not_reach(tmp_path: Path) -> None:
    """V-B04: a list of episodes that was cut is no whole dataset."""
    lerobot_cases.v2(tmp_path, [8, 8], total_episodes=5, total_frames=40)
    (note,) = open_dataset(tmp_path).notes
    assert "says 5 episodes and 40 rows, the list of episodes has 2 and 16" in note


@pytest.mark.parametrize(
    ("facts", "names", "note"),
    [
        ({"names": {"left": ["a", "b", "c"], "right": ["a", "b", "c"]}}, "left_a", ""),
        ({"shape": [7]}, "joint_0.pos", "says 7 numbers for action, the rows have 6"),
        ({"names": ["a", "b"]}, "dimension 0", "names 2 dimensions of action, the rows have 6"),
        ({"names": ["motors"]}, "dimension 0", ""),
    ],
)
def test_names_go_by_the_rows(tmp_path: Path, facts: dict[str, Any], names: str, note: str) -> None:
    """V-A27: names are lost to nobody in silence, whatever shape info.json says."""
    lerobot_cases.v2(tmp_path, [8, 8])
    lerobot_cases.edit(tmp_path, lambda features: features["action"].update(facts))
    found = inspect(open_dataset(tmp_path))
    assert found["actions"][0]["name"] == names
    assert note in text_of(found) and bool(note) == bool(found["remarks"])


def test_a_camera_whose_images_are_deep_grey_is_named(tmp_path: Path) -> None:
    """V-A11: depth by what is in the files, where the meta data says colour."""

    def cell(camera: str, t: int) -> dict[str, Any]:
        depth = (np.arange(48 * 64, dtype=np.uint16) * 20 + t).reshape(48, 64)
        buffer = io.BytesIO()
        Image.fromarray(depth).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    lerobot_cases.v2(tmp_path, [4, 4], each=lambda episode: {"cell": cell})
    assert "camera top has grey images of more than 8 bits" in text_of(
        inspect(open_dataset(tmp_path))
    )


def test_sizes_of_images_are_told_past_broken_ones(tmp_path: Path) -> None:
    def cell(episode: int) -> Callable[[str, int], dict[str, Any]]:
        def made(camera: str, t: int) -> dict[str, Any]:
            pixels = np.full((20 + 4 * episode, 30, 3), t, np.uint8)
            return {"bytes": lerobot_cases.png(pixels) if t else b"broken", "path": None}

        return made

    lerobot_cases.v2(tmp_path, [4, 4], each=lambda episode: {"cell": cell(episode)})
    camera = inspect(open_dataset(tmp_path))["cameras"]["top"]
    assert camera == {"episodes": 2, "shape": [20, 30, 3], "other_shapes": [[24, 30, 3]]}
