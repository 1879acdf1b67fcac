"""Every recorded CRANE-X7 file read by us gives what the original tools recorded."""

import hashlib
import json
import lzma
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workloads.data import tfrecord
from workloads.data.robot import open_dataset, statistics
from workloads.data.robot.episode import Episode
from workloads.data.robot.images import decode, resize
from workloads.data.robot.lerobot.writer import to_lerobot_v3
from workloads.data.tf_example import parse
from workloads.vla.actions import normalize

pytestmark = pytest.mark.golden

HERE = Path(__file__).parent / "crane_x7"
ROOT = Path(os.environ.get("TATARA_GOLDEN_CRANE_X7", HERE))
EXPECTED: dict[str, Any] = json.loads((ROOT / "expected.json").read_text(encoding="utf-8"))
NPZ = EXPECTED["npz"]


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set with nothing packed."""
    target = tmp_path_factory.mktemp("golden") / "crane_x7"
    shutil.copytree(ROOT, target, copy_function=shutil.copyfile)
    for packed in target.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    return target


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def episode_of(golden: Path, name: str) -> Episode:
    dataset = open_dataset(golden / name, drop_last_placeholder=False)
    assert len(dataset) == 1
    return dataset[0]


@pytest.mark.parametrize("name", sorted(EXPECTED["episodes"]))
def test_vectors_and_text(golden: Path, name: str) -> None:
    expected, episode = EXPECTED["episodes"][name], episode_of(golden, name)
    assert len(episode) == expected["num_steps"]
    assert digest(episode.states.astype("<f4")) == expected["states_sha256_f32le"]
    assert digest(episode.actions.astype("<f4")) == expected["actions_sha256_f32le"]
    assert episode.states.dtype == episode.actions.dtype == np.float32
    assert episode.states[0].tolist() == expected["first_state"]
    assert episode.actions[-1].tolist() == expected["last_action"]
    assert np.array_equal(episode.actions[:-1], episode.states[1:])
    if "timesteps" in expected:
        assert episode.timesteps is not None
        assert episode.timesteps.tolist() == expected["timesteps"]
    if "timestamps_f32" in expected:
        assert episode.timestamps is not None
        assert episode.timestamps.tolist() == expected["timestamps_f32"]
    stated = expected.get("language_instruction")
    assert episode.instruction == (stated or "manipulate the object")


@pytest.mark.parametrize("name", sorted(EXPECTED["episodes"]))
def test_raw_records(golden: Path, name: str) -> None:
    expected = EXPECTED["episodes"][name]
    records = list(tfrecord.read(golden / expected["path"]))
    assert len(records) == expected["num_steps"]
    features = parse(records[0])
    assert sorted(features) == expected["keys"]
    for key, frames in expected["images"].items():
        for facts in frames.values():
            jpeg = parse(records[facts["step"]])[key].values[0]
            assert hashlib.sha256(jpeg).hexdigest() == facts["jpeg_sha256"]


@pytest.mark.parametrize("name", sorted(EXPECTED["episodes"]))
def test_pixels_are_exact_and_colours_true(golden: Path, name: str) -> None:
    expected, episode = EXPECTED["episodes"][name], episode_of(golden, name)
    swapped = expected["image_color_order"] == "bgr_swapped"
    cameras = {key.rpartition("image")[2].lstrip("_") or "primary" for key in expected["images"]}
    assert set(episode.cameras) == cameras
    for key, frames in expected["images"].items():
        camera = key.rpartition("image")[2].lstrip("_") or "primary"
        for facts in frames.values():
            pixels = episode.image(camera, facts["step"])
            assert pixels.shape == tuple(facts["shape"]) and pixels.dtype == np.uint8
            stored = pixels[..., ::-1] if swapped else pixels
            assert digest(stored) == facts["sha256_pil"]
            square = min(16, pixels.shape[1] // 8)
            red = pixels[square + square // 2, square // 2].astype(int)
            assert red[0] > 200 and red[2] < 60, "the first square is red"


@pytest.mark.parametrize("name", [n for n, e in EXPECTED["episodes"].items() if "depth" in e])
def test_depth(golden: Path, name: str) -> None:
    facts, episode = EXPECTED["episodes"][name]["depth"], episode_of(golden, name)
    depth = episode.depth("primary", 0)
    assert depth.dtype == np.float32
    assert depth.ravel()[:4].tolist() == facts["first4"]
    assert depth.sum(dtype=np.float64) == facts["sum_step0"]
    if facts["height"] is None:
        assert depth.shape == episode.image("primary", 0).shape[:2]
    else:
        assert depth.shape == (facts["height"], facts["width"])


def test_npz_episode(golden: Path) -> None:
    episode = episode_of(golden, str(Path(NPZ["path"]).parent))
    for camera, row, key in (("primary", 0, "step0"), ("primary", -1, "last")):
        assert digest(episode.image(camera, row)) == NPZ[f"images_sha256_{key}"]
    twin = EXPECTED["episodes"][NPZ["same_trajectory_as"]]
    assert digest(episode.states.astype("<f4")) == twin["states_sha256_f32le"]
    assert digest(episode.actions.astype("<f4")) == twin["actions_sha256_f32le"]


def test_files_come_in_string_order(golden: Path) -> None:
    shutil.copytree(golden / "v2", golden / "with_backup", dirs_exist_ok=True)
    first = golden / "with_backup" / EXPECTED["v2_file_order"][0]
    shutil.copy(first, first.with_suffix(".tfrecord.bak"))
    shutil.copytree(first.parent, first.parent.with_suffix(".bak"), dirs_exist_ok=True)
    dataset = open_dataset(golden / "with_backup")
    names = [Path(e.file).relative_to(golden / "with_backup").as_posix() for e in dataset]
    assert names == EXPECTED["v2_file_order"]


@pytest.mark.parametrize("schema", ["v1", "v2"])
@pytest.mark.parametrize("drop", [False, True])
def test_statistics(golden: Path, schema: str, drop: bool) -> None:
    table = json.loads((golden / "statistics_variants.json").read_text())[schema]
    found = statistics(open_dataset(golden / schema, drop_last_placeholder=drop))["crane_x7"]
    close(found, table["without_placeholder_last_step" if drop else "all_steps"])
    if not drop:
        close(found, table["all_steps_float64"])


def test_statistics_file(golden: Path) -> None:
    expected = json.loads((golden / "dataset_statistics.json").read_text())
    found = statistics(open_dataset(golden / "v2", drop_last_placeholder=False))
    assert found.keys() == expected.keys()
    assert found["crane_x7"].keys() == expected["crane_x7"].keys()
    assert found["crane_x7"]["action"].keys() == expected["crane_x7"]["action"].keys()
    close(found["crane_x7"], expected["crane_x7"])


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for vector in ("action", "proprio"):
        for name, values in expected[vector].items():
            assert np.abs(np.array(found[vector][name]) - values).max() <= 1e-6, (vector, name)
    for name in ("num_transitions", "num_trajectories"):
        assert found[name] == expected.get(name, found[name])


def test_normalised_actions(golden: Path) -> None:
    recorded = np.load(golden / "normalized_actions.npz")
    dataset = open_dataset(golden / "v2", drop_last_placeholder=False)
    actions = np.concatenate([episode.actions for episode in dataset])
    assert np.array_equal(actions, recorded["actions_f32"])
    found = normalize(actions, statistics(dataset)["crane_x7"], "bounds_q99")
    assert np.abs(found - recorded["bounds_q99"]).max() <= 1e-5


@pytest.mark.parametrize("case", sorted(EXPECTED["corrupt"]))
def test_damage(golden: Path, case: str) -> None:
    expected = EXPECTED["corrupt"][case]
    path = golden / "corrupt" / case
    dataset = open_dataset(path, drop_last_placeholder=False)
    damage = dataset.verify()
    kinds = {item.trouble for item in damage} or {"none"}
    assert kinds == {expected["trouble"]}
    assert all(item.file == str(path / "episode_data.tfrecord") for item in damage)
    episode = dataset[0]
    # The original reader stops at a bad checksum; ours goes on behind it.
    good, rows = expected["good_records"], episode.rows.tolist()
    assert rows[: len(good)] == good
    broken = {item.record for item in damage}
    assert not broken & set(rows)
    if expected["trouble"] in ("bad_payload_crc", "bad_length_crc"):
        assert rows == [row for row in range(10) if row not in broken]
        assert broken == {expected["tf_records_before_error"]}
    else:
        assert rows == good
    for t in range(len(episode)):
        assert episode.image("primary", t).shape == (48, 64, 3)


@pytest.mark.parametrize("version", ["v3_0", "v2_1"])
def test_lerobot(golden: Path, version: str) -> None:
    expected = json.loads((golden / f"lerobot_{version}_expected.json").read_text("utf-8"))
    # The small copy of v2.1 has the meta data of all episodes, and one of their files.
    options = {"drop_last_placeholder": False, "damage_budget": math.inf}
    dataset = open_dataset(golden / f"lerobot_{version}", **options)
    assert len(dataset) == expected["num_episodes"]
    read = 0
    for facts in expected["items"].values():
        episode = dataset[facts["episode_index"]]
        if not len(episode):  # its data is not in the small copy, and reported
            assert {item.trouble for item in dataset.damage} == {"missing_file"}
            continue
        read += 1
        t = facts["frame_index"]
        assert episode.instruction == facts["task"]
        assert episode.states[t].tolist() == facts["state"]
        assert episode.actions[t].tolist() == facts["action"]
        assert episode.timestamps is not None and episode.timestamps[t] == facts["timestamp"]
        assert digest(episode.image("primary", t)) == facts["sha256_rgb_primary"]
    assert read >= 2


def unpacked(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; of pictures the name and the pixels, however well they were packed."""
    cells = column.to_pylist()
    if not isinstance(cells[0], dict):
        return cells
    return [(cell["path"], digest(decode(cell["bytes"]))) for cell in cells]


def test_conversion_follows_lerobot_field_by_field(golden: Path, tmp_path: Path) -> None:
    original = open_dataset(golden / "v2", drop_last_placeholder=False)
    to_lerobot_v3(original, tmp_path / "out")
    theirs, ours = golden / "lerobot_v3_0", tmp_path / "out"
    assert json.loads((ours / "meta/info.json").read_text()) == json.loads(
        (theirs / "meta/info.json").read_text()
    )
    files = sorted(p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
    for file in (file for file in files if file.suffix == ".parquet"):
        mine, recorded = pq.read_table(ours / file), pq.read_table(theirs / file)
        assert mine.schema.equals(recorded.schema), file
        for name in recorded.column_names:
            if not name.startswith("stats/"):
                assert unpacked(mine[name]) == unpacked(recorded[name]), (file, name)
    own, recorded_stats = (json.loads((d / "meta/stats.json").read_text()) for d in (ours, theirs))
    assert own.keys() == recorded_stats.keys()
    for feature, table in recorded_stats.items():
        assert own[feature].keys() == table.keys()
        for name in ("min", "max", "mean", "count"):
            assert np.allclose(own[feature][name], table[name], atol=1e-6), (feature, name)


def test_conversion_reads_back_equal(golden: Path, tmp_path: Path) -> None:
    original = open_dataset(golden / "v2")
    converted = to_lerobot_v3(original, tmp_path / "out")
    again = open_dataset(converted.path)
    assert len(again) == len(original) and converted.frames == int(original.lengths.sum())
    for a, b in zip(original, again, strict=True):
        assert a.instruction == b.instruction
        assert np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions)
        for t in range(len(a)):
            assert np.array_equal(a.image("primary", t), b.image("primary", t))


def test_pictures_made_smaller_or_larger_are_the_origins(golden: Path) -> None:
    """3 levels, of which 2 are between JPEG decoders."""
    with np.load(golden / "resized_224.npz") as arrays:
        found = resize(arrays["source_pil_rgb"], 224)
        difference = found.astype(int) - arrays["tf_bilinear_uint8"]
    assert found.shape == (224, 224, 3) and np.abs(difference).max() <= 3
