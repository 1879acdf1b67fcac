"""RLDS folders: episodes in shards, several cameras, choice of vectors, damage."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.robot_data import picture, rlds, step_of, vectors
from workloads.data import tfrecord
from workloads.data.robot import DamagedRecord, images, open_dataset, statistics
from workloads.data.robot.images import encode_png
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def test_episodes(tmp_path: Path) -> None:
    dataset = open_dataset(rlds(tmp_path / "toy"))
    assert dataset.format == "rlds" and dataset.name == "toy_arm" and dataset.fps is None
    assert dataset.lengths.tolist() == [5, 3]
    assert dataset.cameras == ("primary", "wrist"), "depth is no colour picture"
    for number, episode in enumerate(dataset):
        assert episode.instruction == f"do task {number}"
        assert np.array_equal(episode.states, vectors(len(episode), number, 4))
        assert np.array_equal(episode.actions, vectors(len(episode), number + 50, 7))
        for t in range(len(episode)):
            assert step_of(episode.image("primary", t)) == t
            assert np.array_equal(episode.image("wrist", t), picture(t))
    assert dataset.verify() == []
    table = statistics(dataset)["toy_arm"]
    assert table["num_transitions"] == 8 and len(table["proprio"]["mean"]) == 4


def test_versions_and_shards(tmp_path: Path) -> None:
    for version in ("0.1.0", "0.10.0", "0.9.0"):
        rlds(tmp_path / "toy_arm" / version, lengths=(len(version),))
    assert open_dataset(tmp_path / "toy_arm").path.name == "0.10.0"
    assert open_dataset(tmp_path).lengths.tolist() == [6]
    rlds(tmp_path / "other" / "0.1.0")
    with pytest.raises(UserError, match="expected one RLDS dataset"):
        open_dataset(tmp_path)


def test_data_sets_without_versions_are_not_taken_for_versions(tmp_path: Path) -> None:
    rlds(tmp_path / "bridge")
    assert open_dataset(tmp_path).path.name == "bridge"
    rlds(tmp_path / "fractal")
    with pytest.raises(UserError, match="expected one RLDS dataset.*bridge.*fractal"):
        open_dataset(tmp_path)


def test_a_missing_shard_is_damage(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    name = root / "toy_arm-train.tfrecord-00000-of-00001"
    shutil.copy(name, root / "toy_arm-train.tfrecord-00002-of-00003")
    name.rename(root / "toy_arm-train.tfrecord-00000-of-00003")
    dataset = open_dataset(root)
    assert len(dataset) == 4
    (missing,) = dataset.damage
    assert missing.trouble == "missing_file" and missing.file.endswith("00001-of-00003")


def test_splits(tmp_path: Path) -> None:
    rlds(tmp_path / "toy", lengths=(2,), split="val")
    assert open_dataset(tmp_path / "toy").lengths.tolist() == [2], "the only one"
    rlds(tmp_path / "toy", lengths=(4,), split="test")
    with pytest.raises(UserError, match=r"shards of split train, found splits: test, val"):
        open_dataset(tmp_path / "toy")
    assert open_dataset(tmp_path / "toy", split="test").lengths.tolist() == [4]
    rlds(tmp_path / "toy", lengths=(3,))
    assert open_dataset(tmp_path / "toy").lengths.tolist() == [3]


def test_choice_of_vectors(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    dataset = open_dataset(root, action_keys=["action", "gripper"], state_keys=["gripper"])
    assert dataset[0].actions.shape == (5, 8)
    assert dataset[0].actions[:, 7].tolist() == [0, 1, 0, 1, 0]
    assert dataset[0].states.dtype == np.float32
    with pytest.raises(UserError, match=r"action_keys, found 'world_vector'.*action, gripper"):
        open_dataset(root, action_keys=["world_vector"])
    features = (root / "features.json").read_text().replace('"state"', '"joints"')
    (root / "features.json").write_text(features)
    dataset = open_dataset(root)
    assert dataset[0].states.shape == (5, 0), "policies without a state need none"
    assert dataset.unused["observation/joints"] == "tensor float32 [4]"


def test_damaged_steps_and_episodes(tmp_path: Path) -> None:
    action = vectors(5, 50, 7)
    action[3, 2] = np.nan
    frames = [images.encode_jpeg(picture(t)) for t in range(5)]
    changes = {
        0: {"steps/action": action},
        1: {"steps/action": None},
        2: {"steps/observation/image": [*frames[:2], b"garbage", *frames[3:]]},
        3: {"steps/observation/image": frames[:4]},
        4: {"steps/observation/state": np.zeros(19, np.float32)},
        5: {"steps/language_instruction": [b"\xff"] * 5},
        6: {"steps/observation/image": [*frames[:4], frames[4][:200]]},
    }
    root = rlds(tmp_path / "toy", (5,) * 8, changes=changes)
    dataset = open_dataset(root, damage_budget=18)
    assert dataset.lengths.tolist() == [4, 4, 5, 5]
    assert sorted((d.record, d.trouble, d.lost) for d in dataset.damage) == [
        (0, "non_finite", 1),
        (1, "missing_feature", 4),
        (2, "bad_image", 1),
        (3, "missing_feature", 4),
        (4, "wrong_dim", 4),
        (5, "bad_utf8", 4),
    ]
    assert dataset[0].gaps == [(3, 1)] and dataset[1].rows.tolist() == [0, 1, 3, 4]
    assert step_of(dataset[1].image("primary", 2)) == 3
    assert dataset[2].instruction == "do task 6"
    with pytest.raises(DamagedRecord, match="record 6 at byte"):
        dataset[2].image("primary", 4)
    assert [item.record for item in dataset.verify()] == [0, 1, 2, 3, 4, 5, 6]


def test_a_flipped_bit_costs_one_episode(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy", (3, 3, 3))
    file = next(root.glob("*.tfrecord-*"))
    data = bytearray(file.read_bytes())
    data[int(tfrecord.index(file).offsets[1]) + 100] ^= 1
    file.write_bytes(data)
    dataset = open_dataset(root)
    assert [e.instruction for e in dataset] == ["do task 0", "do task 2"]
    assert [item.trouble for item in dataset.damage] == ["bad_payload_crc"]
    assert dataset[1].name.endswith("#2")


def test_index_cache_depends_on_the_vectors(tmp_path: Path) -> None:
    root, cache = rlds(tmp_path / "toy"), tmp_path / "cache"
    first = open_dataset(root, cache_dir=cache)
    other = open_dataset(root, cache_dir=cache, action_keys=["gripper"])
    again = open_dataset(root, cache_dir=cache)
    assert len(list(cache.iterdir())) == 2
    assert other[0].actions.shape == (5, 1)
    assert np.array_equal(again[1].actions, first[1].actions)
    assert again[1].instruction == "do task 1"
    assert step_of(pickle.loads(pickle.dumps(again))[1].image("primary", 2)) == 2


def test_a_shard_written_anew_after_opening_is_noticed(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    dataset = open_dataset(root)
    (file,) = root.glob("*.tfrecord-*")
    sizes = [len(record) for record in tfrecord.read(file)]
    tfrecord.write(file, [bytes(size) for size in sizes])
    with pytest.raises(DamagedRecord, match="missing_feature"):
        dataset[0].image("primary", 0)


def test_what_is_no_rlds_data_set(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": {}}}))
    with pytest.raises(UserError, match=r"features\.json: expected a sequence of steps"):
        open_dataset(root)


def test_features_of_another_kind_than_written(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    fields = json.loads((root / "features.json").read_text())
    steps = fields["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    steps["features"]["action"]["tensor"]["shape"]["dimensions"] = ["many"]
    (root / "features.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="expected a sequence of steps, found invalid literal"):
        open_dataset(root)


def test_array_record_is_read_like_tfrecord(tmp_path: Path) -> None:
    """V-B05: through its own package."""
    module = pytest.importorskip("array_record.python.array_record_module")
    root = rlds(tmp_path / "toy", (5, 3, 4))
    file = root / "toy_arm-train.tfrecord-00000-of-00001"
    expected = open_dataset(root)
    writer = module.ArrayRecordWriter(
        str(root / "toy_arm-train.array_record-00000-of-00001"), "group_size:1"
    )
    for record in tfrecord.read(file):
        writer.write(record)
    writer.close()
    file.rename(tmp_path / "aside")
    dataset = open_dataset(root, cache_dir=tmp_path / "cache")
    assert dataset.lengths.tolist() == [5, 3, 4]
    again = pickle.loads(pickle.dumps(dataset))
    assert again[2].instruction == "do task 2"
    assert [step_of(again[1].image("wrist", t)) for t in range(3)] == [0, 1, 2]
    assert np.array_equal(again[0].actions, vectors(5, 50, 7)) and dataset.verify() == []
    (tmp_path / "aside").rename(file)
    assert np.array_equal(expected[0].image("primary", 2), again[0].image("primary", 2))


def changed(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the features of a step."""
    fields = json.loads((root / "features.json").read_text())
    steps = fields["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    change(steps["features"])
    (root / "features.json").write_text(json.dumps(fields))


def test_what_nothing_reads_is_named(tmp_path: Path) -> None:
    root = rlds(rlds(tmp_path / "toy"), split="val")
    texts = {"pythonClassName": "Sequence", "sequence": {"feature": {"text": {}}, "length": "-1"}}
    changed(root, lambda step: step.update(subgoals=texts))
    unused = open_dataset(root).unused
    assert unused["subgoals"] == "sequence"
    assert unused["split val"] == "data.split chooses another"


def test_cameras_of_one_name_keep_their_whole_names(tmp_path: Path) -> None:
    """V-A30's kind: none takes the place of the other."""
    root = rlds(tmp_path / "toy", (5,), changes={0: {
        "steps/observation/image_primary": [encode_png(picture(9))] * 5
    }})  # fmt: skip

    def add(step: dict[str, Any]) -> None:
        observation = step["observation"]["featuresDict"]["features"]
        observation["image_primary"] = observation["image"]

    changed(root, add)
    (episode,) = open_dataset(root)
    names = ("observation/image", "observation/image_primary", "wrist")
    assert episode.cameras == names
    assert [step_of(episode.image(name, 2)) for name in names] == [2, 9, 2]


def test_what_the_folder_says_of_its_shards_in_odd_ways(tmp_path: Path) -> None:
    root = rlds(tmp_path / "toy")
    splits = [{"name": "train", "shardLengths": ["many"]}]
    (root / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(UserError, match=r"expected numbers of episodes as shardLengths"):
        open_dataset(root)
    shard = root / "toy_arm-train.tfrecord-00000-of-00001"
    shard.rename(root / f"{shard.name}.incomplete")
    with pytest.raises(UserError, match="00001.incomplete', which is no shard's name"):
        open_dataset(root)
