"""LeRobot v3.0 and v2.1: frames of videos exactly, rows of parquet, and what is missing."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.robot_data import (
    crane_episode,
    lerobot_video_v2,
    lerobot_video_v3,
    picture,
    step_of,
    vectors,
    video,
)
from workloads.data.robot import DamagedRecord, open_dataset
from workloads.data.robot.lerobot.video import OpenVideos, VideoError
from workloads.data.robot.lerobot.writer import to_lerobot_v3
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def test_v3_with_one_video_for_all_episodes(tmp_path: Path) -> None:
    dataset = open_dataset(lerobot_video_v3(tmp_path / "set"))
    assert dataset.format == "lerobot" and dataset.name == "toy" and dataset.fps == 10
    assert dataset.lengths.tolist() == [9, 7, 12] and dataset.cameras == ("top",)
    assert [episode.instruction for episode in dataset] == ["even", "odd", "even"]
    first = 0
    for number, episode in enumerate(dataset):
        assert np.array_equal(episode.states, vectors(len(episode), number))
        assert episode.timesteps is not None
        assert episode.timesteps.tolist() == list(range(len(episode)))
        steps = [step_of(episode.image("top", t)) for t in range(len(episode))]
        assert steps == list(range(first, first + len(episode)))
        first += len(episode)
    assert dataset.verify() == []


def test_frames_in_any_order(tmp_path: Path) -> None:
    dataset = open_dataset(lerobot_video_v3(tmp_path / "set"))
    places = [(e, t) for e, n in enumerate([9, 7, 12]) for t in range(n)]
    starts = [0, 9, 16]
    for place in np.random.default_rng(1).permutation(len(places)):
        episode, t = places[place]
        assert step_of(dataset[episode].image("top", t)) == starts[episode] + t


def test_v2_with_a_video_for_each_episode(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "my_set")
    dataset = open_dataset(root)
    assert dataset.name == "my_set" and dataset.lengths.tolist() == [9, 7]
    assert dataset[1].instruction == "odd"
    assert [step_of(dataset[1].image("top", t)) for t in (6, 0, 3, 2)] == [6, 0, 3, 2]
    assert dataset[0].encoded("top", 0) is None


def test_a_missing_or_broken_video_is_damage(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "set")
    first, second = sorted((root / "videos").rglob("*.mp4"))
    first.write_bytes(first.read_bytes()[:300])
    second.unlink()
    dataset = open_dataset(root, damage_budget=16)
    damage = dataset.verify()
    assert {(d.file, d.trouble, d.lost) for d in damage} == {
        (str(first), "bad_image", 9),
        (str(second), "missing_file", 7),
    }
    with pytest.raises(DamagedRecord):
        dataset[0].image("top", 0)


def test_a_video_shorter_than_its_episode(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "set")
    first = sorted((root / "videos").rglob("*.mp4"))[0]
    video(first, [picture(t) for t in range(6)])
    dataset = open_dataset(root)
    (damage,) = dataset.verify()
    assert "6 frames for 9 rows" in damage.cause and damage.lost == 9
    # Which of the frames are missing cannot be known: none is shown for a step.
    with pytest.raises(DamagedRecord):
        dataset[0].image("top", 0)


def test_a_time_between_two_frames_is_refused_only_outside(tmp_path: Path) -> None:
    file = video(tmp_path / "v.mp4", [picture(t) for t in range(10)])
    videos = OpenVideos()
    assert step_of(videos.frame(file, 0.31)) == 3
    assert step_of(videos.frame(file, 0.28)) == 3
    with pytest.raises(VideoError, match=r"no frame at 1\.500 s"):
        videos.frame(file, 1.5)
    with pytest.raises(VideoError, match="no frame"):
        videos.frame(file, -0.2)


def test_frames_handed_out_are_the_callers_own(tmp_path: Path) -> None:
    file = video(tmp_path / "v.mp4", [picture(t) for t in range(3)])
    videos = OpenVideos()
    videos.frame(file, 0.1)[...] = 0
    assert step_of(videos.frame(file, 0.1)) == 1


def test_many_videos_keep_few_open(tmp_path: Path) -> None:
    files = [video(tmp_path / f"{n}.mp4", [picture(n), picture(n)]) for n in range(7)]
    videos = OpenVideos()
    for _ in range(2):
        assert [step_of(videos.frame(file, 0.1)) for file in files] == list(range(7))
    assert len(videos._open) == 4
    assert step_of(pickle.loads(pickle.dumps(videos)).frame(files[2], 0)) == 2


def test_rows_with_nan_are_left_out(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    actions = table["action"].to_pylist()
    actions[11][3] = float("nan")
    index = table.column_names.index("action")
    pq.write_table(table.set_column(index, "action", [actions]), file)
    dataset = open_dataset(root)
    episode = dataset[1]
    assert [(d.record, d.trouble) for d in dataset.damage] == [(11, "non_finite")]
    assert episode.rows.tolist() == [9, 10, 12, 13, 14, 15] and episode.gaps == [(2, 1)]
    assert step_of(episode.image("top", 2)) == 12


def test_a_data_file_that_is_missing_or_short(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "set")
    first, second = sorted((root / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(first).slice(0, 5), first)
    second.write_bytes(second.read_bytes()[:200])
    dataset = open_dataset(root, damage_budget=20)
    assert dataset.lengths.tolist() == [5, 0]
    assert [(d.file, d.trouble, d.lost) for d in dataset.damage][:2] == [
        (str(first), "truncated", 4),
        (str(second), "bad_file", 7),
    ]


def test_damage_past_the_budget_stops_at_opening(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "set")
    for file in (root / "data").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(UserError, match="at most 1 damaged records, found 16 of 16"):
        open_dataset(root, damage_budget=1)


def test_a_picture_in_parquet_that_is_broken(tmp_path: Path) -> None:
    crane_episode(tmp_path / "crane", 6)
    root = to_lerobot_v3(open_dataset(tmp_path / "crane"), tmp_path / "set").path
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    key = "observation.images.primary"
    cells = table[key].to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:60]
    cells[1]["bytes"] = None
    cells[4] = {"bytes": None, "path": "outside.png"}
    (root / "outside.png").write_bytes(cells[0]["bytes"])
    kind = table.schema.field(key).type
    import pyarrow as pa

    table = table.set_column(table.column_names.index(key), key, pa.array(cells, kind))
    pq.write_table(table, file)
    dataset = open_dataset(root)
    assert [(d.record, d.trouble) for d in dataset.verify()] == [
        (1, "missing_file"), (3, "bad_image"),
    ]  # fmt: skip
    assert step_of(dataset[0].image("primary", 4)) == 0


def test_other_keys(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    dataset = open_dataset(root, action_keys=["action", "observation.state"])
    assert dataset[0].actions.shape == (9, 16)
    with pytest.raises(UserError, match=r"info\.json: expected a feature 'observation\.joints'"):
        open_dataset(root, state_keys=["observation.joints"])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"data_path": None}, "no 'data_path'"),
        ({"fps": "ten"}, "could not convert string to float"),
        ({"features": ["observation.state", "action"]}, "features of \\["),
        ({"data_path": "data/{place}.parquet"}, "no 'place'"),
    ],
)
def test_fields_that_are_missing_or_wrong(
    tmp_path: Path, changes: dict[str, object], found: str
) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text()) | changes
    kept = {name: value for name, value in info.items() if value is not None}
    (root / "meta/info.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=rf"meta: expected the fields of LeRobot v3\.0.*{found}"):
        open_dataset(root)


def test_meta_data_cut_off(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"file-000\.parquet: expected a parquet file"):
        open_dataset(root)


def test_a_data_file_without_a_column_is_damage(tmp_path: Path) -> None:
    root = lerobot_video_v2(tmp_path / "set")
    file = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["action"]), file)
    dataset = open_dataset(root)
    assert dataset.lengths.tolist() == [9, 0]
    assert [(d.file, d.trouble) for d in dataset.damage] == [(str(file), "bad_file")]


def test_tasks_that_change_within_an_episode_are_each_steps_own(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    assert [episode.instruction for episode in open_dataset(root)] == ["even", "odd", "even"]
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    index = table.column_names.index("task_index")
    tasks = [0, 1] * (len(table) // 2)
    pq.write_table(table.set_column(index, "task_index", [tasks]), file)
    episode = open_dataset(root)[0]
    assert [episode.instruction_at(t) for t in range(4)] == ["even", "odd", "even", "odd"]
    assert episode.take(slice(1, 4)).instruction == "odd"
    assert episode.instructions == ("even", "odd")


def test_vectors_are_read_once_and_pictures_a_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras = ("primary", "secondary", "wrist")
    for number in range(2):
        crane_episode(tmp_path / "data" / f"episode_{number}", 6, cameras=cameras)
    root = to_lerobot_v3(open_dataset(tmp_path / "data"), tmp_path / "set").path
    read = Counter[str]()
    for name in ("read_table", "ParquetFile"):
        own = getattr(pq, name)
        monkeypatch.setattr(
            pq, name, lambda file, *a, own=own, **k: read.update([str(file)]) or own(file, *a, **k)
        )
    dataset = open_dataset(root)
    file = str(root / "data/chunk-000/file-000.parquet")
    assert dataset.lengths.tolist() == [5, 5] and dataset.cameras == cameras
    assert np.array_equal(dataset[1].actions, dataset[1].actions)
    assert read[file] == 1
    assert dataset.verify() == []
    # The row groups' places, and then one reading for each camera of each episode.
    assert read[file] == 1 + 1 + 2 * len(cameras)


def test_versions_we_do_not_know(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(UserError, match=r"expected codebase_version v3\.0 or v2\.1, found 'v1\.6'"):
        open_dataset(root)
    (root / "meta/info.json").write_text("no json")
    with pytest.raises(UserError, match=r"meta/info\.json:1:\d+: expected JSON"):
        open_dataset(root)


def test_meta_data_that_is_missing(tmp_path: Path) -> None:
    root = lerobot_video_v3(tmp_path / "three")
    (root / "meta/tasks.parquet").unlink()
    with pytest.raises(UserError, match=r"tasks\.parquet: expected a parquet file"):
        open_dataset(root)
    root = lerobot_video_v2(tmp_path / "two")
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0,\n')
    with pytest.raises(UserError, match=r"episodes\.jsonl:1:\d+: expected JSON"):
        open_dataset(root)


def test_a_dataset_by_its_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V-G03: downloaded at the revision asked for, or refused as a name."""
    import huggingface_hub

    asked: list[tuple[str, str, str | None]] = []

    def snapshot(name: str, repo_type: str, revision: str | None) -> str:
        asked.append((name, repo_type, revision))
        if name != "toy/arm":
            raise OSError("404 Client Error: Repository Not Found")
        return str(tmp_path / "set")

    lerobot_video_v3(tmp_path / "set")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("toy/arm", revision="v1.2")
    assert len(dataset) == 3 and dataset.revision == "set", "the snapshot's folder is its commit"
    assert asked == [("toy/arm", "dataset", "v1.2")]
    with pytest.raises(UserError, match="toy/none: expected a folder here or a dataset on the hub"):
        open_dataset("toy/none")
    (tmp_path / "set/meta/info.json").rename(tmp_path / "info.json")
    with pytest.raises(
        UserError, match=r"toy/arm: expected a LeRobot dataset with meta/info\.json"
    ):
        open_dataset("toy/arm")
    with pytest.raises(UserError, match="found nothing at"):
        open_dataset("set/absent/deeper")
