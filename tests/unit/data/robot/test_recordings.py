"""CRANE-X7 recordings: both schemas, older keys, damage and what becomes of its neighbours."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.robot_data import crane_episode, picture, rewrite, step_of, vectors
from workloads.data import tf_example, tfrecord
from workloads.data.robot import DamagedRecord, images, open_dataset
from workloads.data.robot.crane_x7 import npz, tfrecords
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def v1_episode(folder: Path, steps: int = 4, **extra: object) -> Path:
    folder.mkdir(parents=True)
    states = vectors(steps)
    goals = np.concatenate([states[1:], states[-1:]])
    records = []
    for t in range(steps):
        features = {
            "observation/state": states[t],
            "action": goals[t],
            "observation/image": images.encode_jpeg(picture(t)[..., ::-1]),
            "observation/image/height": np.array([24]),
            "observation/image/width": np.array([32]),
            "observation/image/channels": np.array([3]),
            "observation/timestamp": np.array([t / 10], np.float32),
        }
        records.append(tf_example.build(features | extra))
    tfrecord.write(folder / "episode_data.tfrecord", records)
    return folder / "episode_data.tfrecord"


def test_v2_written_by_us(tmp_path: Path) -> None:
    crane_episode(tmp_path / "episode_0000_x", cameras=("wrist", "primary"))
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1 and dataset.name == "crane_x7" and dataset.fps == 10
    episode = dataset[0]
    assert episode.name == "episode_0000_x"
    assert episode.cameras == ("primary", "wrist")
    assert len(episode) == 5, "the placeholder is dropped"
    assert np.array_equal(episode.states, vectors(6)[:5])
    assert np.array_equal(episode.actions, vectors(6)[1:])
    assert [step_of(episode.image("wrist", t)) for t in range(5)] == [0, 1, 2, 3, 4]
    assert episode.segments == [slice(0, 5)] and episode.gaps == []
    assert len(open_dataset(tmp_path, drop_last_placeholder=False)[0]) == 6


def test_v1_and_the_colours_of_real_recorders(tmp_path: Path) -> None:
    v1_episode(tmp_path / "episode_0000_x")
    episode = open_dataset(tmp_path, drop_last_placeholder=False)[0]
    assert episode.color_order == "bgr" and episode.cameras == ("primary",)
    assert [step_of(episode.image("primary", t)) for t in range(4)] == [0, 1, 2, 3]
    assert episode.timestamps is not None and episode.timestamps.dtype == np.float64
    assert episode.instruction == "manipulate the object"
    other = open_dataset(tmp_path, color_order="rgb", instruction="stack the blocks")[0]
    assert other.instruction == "stack the blocks"
    with pytest.raises(AssertionError):
        step_of(other.image("primary", 0))


def test_what_the_episode_says_of_its_colours_counts(tmp_path: Path) -> None:
    crane_episode(tmp_path)
    assert step_of(open_dataset(tmp_path, color_order="bgr")[0].image("primary", 2)) == 2
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"image_color_order": "purple"}))
    with pytest.raises(UserError, match="found 'purple'"):
        open_dataset(tmp_path)
    for field, value in (("fps", "ten"), ("fps", 0), ("depth_shape", [4]), ("depth_shape", "4x4")):
        meta.write_text(json.dumps({field: value}))
        with pytest.raises(UserError, match=rf"meta\.json: expected {field} .*found .*; fix"):
            open_dataset(tmp_path)
    meta.write_text("{")
    with pytest.raises(UserError, match=r"meta\.json:1:\d+: expected JSON"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("key", ["task/language_instruction", "language_instruction", "prompt"])
def test_instruction_keys(tmp_path: Path, key: str) -> None:
    v1_episode(tmp_path / "episode", **{key: "箱を開ける"})
    assert open_dataset(tmp_path)[0].instruction == "箱を開ける"


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_instruction_has_a_default(tmp_path: Path, text: str) -> None:
    crane_episode(tmp_path, instruction=text)
    assert open_dataset(tmp_path)[0].instruction == "manipulate the object"


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"action": None}, "missing_feature"),
        ({"action": np.array([1, 2, 3])}, "missing_feature"),
        ({"observation/proprio": None}, "missing_feature"),
        ({"observation/image_primary": None}, "missing_feature"),
        ({"observation/image_primary": b""}, "missing_feature"),
        ({"action": np.zeros(7, np.float32)}, "wrong_dim"),
        ({"observation/proprio": np.full(8, np.inf, np.float32)}, "non_finite"),
        ({"observation/image_primary": b"\x00" * 300}, "bad_image"),
        ({"task/language_instruction": b"\xff\xfe"}, "bad_utf8"),
    ],
)
def test_a_damaged_record_leaves_its_neighbours(
    tmp_path: Path, changes: dict[str, object], trouble: str
) -> None:
    file = crane_episode(tmp_path / "episode", 8)
    rewrite(file, {3: changes})
    dataset = open_dataset(tmp_path)
    (damage,) = dataset.damage
    assert (damage.file, damage.record, damage.trouble) == (str(file), 3, trouble)
    index = tfrecord.index(file)
    assert damage.offset == index.offsets[3]
    episode = dataset[0]
    assert episode.rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert episode.gaps == [(3, 1)] and episode.segments == [slice(0, 3), slice(3, 6)]
    # The step before the gap still leads to the state that was recorded behind it.
    assert np.array_equal(episode.actions[2], vectors(8)[3])
    assert [step_of(episode.image("primary", t)) for t in range(6)] == episode.rows.tolist()
    assert dataset.verify() == dataset.damage


def test_no_example_at_all(tmp_path: Path) -> None:
    file = crane_episode(tmp_path)
    records = list(tfrecord.read(file))
    tfrecord.write(file, [*records[:2], b"\x0b\x0b", *records[2:]])
    assert [(d.record, d.trouble) for d in open_dataset(tmp_path).damage] == [(2, "bad_example")]


def test_the_last_good_step_stays_where_the_placeholder_is_damaged(tmp_path: Path) -> None:
    file = crane_episode(tmp_path, 6)
    with open(file, "r+b") as handle:
        handle.truncate(file.stat().st_size - 20)
    episode = open_dataset(tmp_path)[0]
    assert len(episode) == 5 and np.array_equal(episode.actions[4], vectors(6)[5])


def test_a_picture_that_breaks_off_is_found_by_verify_and_by_reading(tmp_path: Path) -> None:
    file = crane_episode(tmp_path, 6, cameras=("primary", "wrist"))
    record = tf_example.parse(list(tfrecord.read(file))[2])
    jpeg = bytes(record["observation/image_wrist"].values[0])
    rewrite(file, {2: {"observation/image_wrist": jpeg[: len(jpeg) // 2]}})
    dataset = open_dataset(tmp_path)
    assert dataset.damage == []
    (found,) = dataset.verify()
    assert (found.record, found.trouble) == (2, "bad_image")
    assert "image_wrist" in found.cause
    with pytest.raises(DamagedRecord, match="record 2 at byte") as caught:
        dataset[0].image("wrist", 2)
    assert caught.value.damage == found
    assert step_of(dataset[0].image("primary", 2)) == 2


def test_verify_reads_the_placeholder_too(tmp_path: Path) -> None:
    file = crane_episode(tmp_path, 6)
    rewrite(file, {5: {"observation/image_primary": b"\xff\xd8\xff broken"}})
    assert [item.record for item in open_dataset(tmp_path).verify()] == [5]


def test_past_the_budget_opening_stops(tmp_path: Path) -> None:
    file = crane_episode(tmp_path, 30)
    nan = np.full(8, np.nan, np.float32)
    rewrite(file, {number: {"action": nan} for number in range(11)})
    with pytest.raises(UserError, match=r"at most 10 damaged records, found 11 of 30.*record 0"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, damage_budget=float("inf"))
    assert len(dataset.damage) == 11 and len(dataset[0]) == 18
    with pytest.raises(UserError, match="at most 2 damaged"):
        open_dataset(tmp_path, damage_budget=2)


def test_a_file_of_another_size_is_damage(tmp_path: Path) -> None:
    for number in range(3):
        crane_episode(tmp_path / f"episode_{number}", 6, seed=number)
    crane_episode(tmp_path / "episode_9", 4, size=7)
    dataset = open_dataset(tmp_path)
    assert dataset.lengths.tolist() == [5, 5, 5, 0]
    assert [(d.record, d.trouble) for d in dataset.damage] == [(n, "wrong_dim") for n in range(4)]


def test_files_of_both_kinds_backups_and_order(tmp_path: Path) -> None:
    crane_episode(tmp_path / "episode_10_b", 3)
    crane_episode(tmp_path / "episode_9_a", 4)
    npz_episode(tmp_path / "episode_10_b")
    npz_episode(tmp_path / "episode_2_c")
    shutil.copytree(tmp_path / "episode_9_a", tmp_path / "episode_0_old.bak")
    (tmp_path / "episode_10_b" / "episode_data.tfrecord.bak").write_bytes(b"old")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.npz").write_bytes(b"no recording")
    dataset = open_dataset(tmp_path)
    assert [e.name for e in dataset] == ["episode_10_b", "episode_2_c", "episode_9_a"]
    assert dataset.color_orders == ("rgb",)


def npz_episode(folder: Path, steps: int = 5, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    states = vectors(steps)
    arrays = {
        "states": states,
        "actions": np.concatenate([states[1:], states[-1:]]),
        "timestamps": np.arange(steps) / 10,
        "images_primary": np.stack([picture(t) for t in range(steps)]),
        "images_wrist": np.stack([picture(t) for t in range(steps)]),
        "depths_primary": np.full((steps, 24, 32), 500.0, np.float32),
        "language_instruction": np.array("open the drawer"),
    }
    kept = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez_compressed(folder / "episode_data.npz", **kept)  # type: ignore[arg-type]
    return folder / "episode_data.npz"


def test_npz(tmp_path: Path) -> None:
    npz_episode(tmp_path)
    dataset = open_dataset(tmp_path)
    episode = dataset[0]
    assert len(episode) == 4 and episode.cameras == ("primary", "wrist")
    assert episode.instruction == "open the drawer" and episode.color_order == "rgb"
    assert np.array_equal(episode.image("wrist", 3), picture(3))
    assert episode.depth("primary", 0).shape == (24, 32) and episode.depth_cameras == ("primary",)
    assert episode.encoded("primary", 0) is None
    assert dataset.verify() == []


@pytest.mark.parametrize(
    ("changes", "trouble", "length"),
    [
        ({"actions": None}, "missing_feature", 0),
        ({"states": np.zeros((4, 8), np.float32)}, "wrong_dim", 0),
        ({"states": np.zeros(8, np.float32)}, "wrong_dim", 0),
        ({"actions": np.array([[1.0] * 8, [np.nan] * 8, *[[1.0] * 8] * 3])}, "non_finite", 4),
        ({"images_wrist": np.zeros((3, 24, 32, 3), np.uint8)}, "wrong_dim", 0),
        ({"images_wrist": np.zeros((6, 24, 32, 3), np.uint8)}, "wrong_dim", 0),
        ({"language_instruction": np.array([b"ouvre le caf\xe9"])}, "bad_utf8", 0),
    ],
)
def test_npz_damage(tmp_path: Path, changes: dict[str, object], trouble: str, length: int) -> None:
    npz_episode(tmp_path, **changes)
    dataset = open_dataset(tmp_path, drop_last_placeholder=False)
    assert {item.trouble for item in dataset.verify()} == {trouble}
    assert len(dataset[0]) == length


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("images_wrist", np.zeros((5, 24, 32, 2), np.uint8), "uint8 [24, 32, 2]"),
        ("images_wrist", np.zeros((5, 24, 32), np.uint16), "uint16 [24, 32]"),
        ("image_depth", np.zeros((5, 24, 32), np.uint8), "depth, by its name"),
    ],
)
def test_npz_arrays_that_are_no_colour_images(
    tmp_path: Path, name: str, array: np.ndarray, reason: str
) -> None:
    """V-A11's kind."""
    npz_episode(tmp_path, **({"images_wrist": None} | {name: array}))
    dataset = open_dataset(tmp_path)
    assert dataset.cameras == ("primary",) and dataset.verify() == []
    assert dataset.unused[name] == f"no colour camera: {reason}"


def test_npz_instructions_that_are_pickled_are_named(tmp_path: Path) -> None:
    npz_episode(tmp_path, language_instruction=np.array(["open it"], object))
    assert open_dataset(tmp_path).unused["language_instruction"].startswith("pickled objects")


def test_npz_broken_file(tmp_path: Path) -> None:
    file = npz_episode(tmp_path)
    data = file.read_bytes()
    for content, trouble in ((b"", "empty"), (data[: len(data) // 2], "bad_file")):
        file.write_bytes(content)
        dataset = open_dataset(tmp_path)
        assert [item.trouble for item in dataset.verify()] == [trouble]
        assert dataset.lengths.tolist() == [0]


def test_npz_pictures_that_are_grey_or_transparent(tmp_path: Path) -> None:
    frames = np.stack([picture(t) for t in range(5)])
    grey, alpha = frames[..., 0], np.concatenate([frames, frames[..., :1]], -1)
    npz_episode(tmp_path, images_grey=grey, images_one=grey[..., None], images_wrist=alpha)
    dataset = open_dataset(tmp_path)
    assert dataset.verify() == []
    for camera in ("grey", "one"):
        assert np.array_equal(dataset[0].image(camera, 3), np.stack([grey[3]] * 3, -1))
    assert np.array_equal(dataset[0].image("wrist", 3), frames[3])


@pytest.mark.parametrize("times", [0.0, np.zeros((5, 0)), np.zeros(4), np.array(["x"] * 5)])
def test_npz_times_that_are_none(tmp_path: Path, times: object) -> None:
    npz_episode(tmp_path, timestamps=times)
    (episode,) = open_dataset(tmp_path)
    assert len(episode) and episode.timestamps is None


def test_empty_and_odd_features_are_no_news_to_the_rest(tmp_path: Path) -> None:
    file = crane_episode(tmp_path, 5)
    depth = np.full((24, 32), 7, np.float32)
    key = "observation/depth_primary"
    rewrite(file, {t: {key: depth.tobytes()} for t in range(5)})
    odd: dict[str, object] = {f"{key}/height": b"x", f"{key}/width": np.float32([np.nan])}
    broken = {"observation/image_primary": b"\xff\xd8\xff broken"}
    rewrite(file, {1: {"observation/timestep": np.array([], np.int64)} | odd, 3: broken})
    dataset = open_dataset(tmp_path)
    assert len(dataset[0]) == 4 and dataset[0].timesteps is None
    assert np.array_equal(dataset[0].depth("primary", 1), depth)
    assert [(item.record, item.trouble) for item in dataset.verify()] == [
        (3, "bad_image"),
        (3, "wrong_dim"),
    ]


def test_npz_arrays_are_loaded_once_for_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([picture(t) for t in range(5)])
    npz_episode(tmp_path / "a", images_secondary=frames, images_wrist=frames)
    loaded = []
    load = npz._load_array
    monkeypatch.setattr(npz, "_load_array", lambda *which: loaded.append(which[1]) or load(*which))
    assert open_dataset(tmp_path).verify() == []
    assert len(loaded) == len(set(loaded)) >= 3


def test_npz_never_unpickles(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    trap = np.array(Trap(), dtype=object)
    npz_episode(tmp_path / "episode", language_instruction=trap)
    assert open_dataset(tmp_path)[0].instruction == "manipulate the object"
    assert not (tmp_path / "trapped").exists()


def test_index_cache(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    file = crane_episode(data / "episode_0", 6, cameras=("primary", "wrist"))
    rewrite(file, {2: {"action": None}})
    before = sorted(data.rglob("*"))
    first = open_dataset(data, cache_dir=cache)
    assert sorted(data.rglob("*")) == before
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = open_dataset(data, cache_dir=cache)
    assert kept.stat().st_mtime_ns == stamp
    assert again.damage == first.damage and again[0].cameras == first[0].cameras
    assert np.array_equal(again[0].states, first[0].states)
    assert step_of(again[0].image("wrist", 2)) == 3
    crane_episode(data / "episode_1", 4)
    assert open_dataset(data, cache_dir=cache).lengths.tolist() == [4, 3]
    assert list(cache.iterdir()) == [kept]


def test_the_index_reads_what_is_new_and_forgets_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for number in range(3):
        crane_episode(data / f"episode_{number}", 4 + number, seed=number)
    scanned = []
    scan = tfrecords.scan
    monkeypatch.setattr(
        tfrecords, "scan", lambda path: scanned.append(path.parent.name) or scan(path)
    )
    whole = open_dataset(data, cache_dir=cache)
    crane_episode(data / "episode_1", 9, seed=7)
    again = open_dataset(data, cache_dir=cache)
    assert again.lengths.tolist() == [3, 8, 5]
    assert scanned == ["episode_0", "episode_1", "episode_2", "episode_1"]
    assert np.array_equal(again[2].actions, whole[2].actions) and again[2].actions.flags.writeable
    (kept,) = cache.iterdir()
    large = kept.stat().st_size
    shutil.rmtree(data / "episode_1")
    assert open_dataset(data, cache_dir=cache).lengths.tolist() == [3, 5]
    assert kept.stat().st_size < large and len(scanned) == 4


def test_what_an_interrupted_look_found_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for number in range(3):
        crane_episode(data / f"episode_{number}", 4)
    scan = tfrecords.scan

    def interrupted(path: Path) -> object:
        if path.parent.name == "episode_2":
            raise KeyboardInterrupt
        return scan(path)

    monkeypatch.setattr(tfrecords, "scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(data, cache_dir=cache)
    scanned = []
    monkeypatch.setattr(
        tfrecords, "scan", lambda path: scanned.append(path.parent.name) or scan(path)
    )
    assert len(open_dataset(data, cache_dir=cache)) == 3 and scanned == ["episode_2"]


def test_links_are_followed_and_never_round(tmp_path: Path) -> None:
    crane_episode(tmp_path / "disk" / "episode_7", 3)
    crane_episode(tmp_path / "data" / "episode_0", 4)
    (tmp_path / "data" / "episode_1").symlink_to(tmp_path / "disk" / "episode_7")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert [e.name for e in open_dataset(tmp_path / "data")] == ["episode_0", "episode_1"]


def test_what_may_not_be_read_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything."""
    crane_episode(tmp_path / "episode_0", 4)
    crane_episode(tmp_path / "episode_1", 4)
    access, scandir = os.access, os.scandir
    with monkeypatch.context() as locked:
        locked.setattr(os, "access", lambda path, how: "_1" not in path and access(path, how))
        with pytest.raises(UserError, match=r"may be read, found .*episode_1.*permissions"):
            open_dataset(tmp_path)

    def refused(path: str) -> object:
        if str(path).endswith("episode_1"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match="a readable folder, found .*episode_1: Permission denied"):
        open_dataset(tmp_path)


def test_a_single_file_is_an_episode_only_by_its_name(tmp_path: Path) -> None:
    file = crane_episode(tmp_path / "episode_0", 4)
    assert len(open_dataset(file)[0]) == 3
    with pytest.raises(
        UserError, match="found a file episode_data.tfrecord.gz; what is read: meta/info.json"
    ):
        open_dataset(file.rename(tmp_path / "episode_data.tfrecord.gz"))


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crane_episode(tmp_path / "data")
    (tmp_path / "cache").write_text("a file in the way")
    assert len(open_dataset(tmp_path / "data", cache_dir=tmp_path / "cache")[0]) == 5
    assert "cannot be written" in caplog.text


def test_a_file_that_changes_after_opening_is_noticed(tmp_path: Path) -> None:
    file = crane_episode(tmp_path)
    dataset = open_dataset(tmp_path)
    crane_episode(tmp_path, 3, seed=5, cameras=("wrist",))
    with pytest.raises(DamagedRecord):
        dataset[0].image("primary", 4)
    sizes = [len(record) for record in tfrecord.read(file)]
    crane_episode(tmp_path, 3, seed=5, cameras=("wrist",))
    dataset = open_dataset(tmp_path)
    tfrecord.write(file, [bytes(size) for size in sizes])
    with pytest.raises(DamagedRecord, match="bad_example"):
        dataset[0].image("wrist", 0)
    file.unlink()
    with pytest.raises(DamagedRecord, match="missing_file"):
        dataset[0].image("wrist", 0)


def test_indexing(tmp_path: Path) -> None:
    for number in range(3):
        crane_episode(tmp_path / f"episode_{number}", 3 + number, seed=number)
    dataset = open_dataset(tmp_path)
    assert [len(e) for e in dataset] == [2, 3, 4] == dataset.lengths.tolist()
    assert dataset[-1].name == "episode_2"
    assert [e.name for e in dataset[1:]] == ["episode_1", "episode_2"]
    with pytest.raises(IndexError):
        _ = dataset[3]
    with pytest.raises(IndexError, match="which has 2 steps"):
        dataset[0].image("primary", 2)
    with pytest.raises(UserError, match="expected one of the cameras primary, found 'wrist'"):
        dataset[0].image("wrist", 0)


def test_a_data_set_goes_to_worker_processes(tmp_path: Path) -> None:
    crane_episode(tmp_path / "a")
    npz_episode(tmp_path / "b")
    dataset = open_dataset(tmp_path)
    dataset[1].image("primary", 0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert step_of(copy[0].image("primary", 3)) == step_of(copy[1].image("primary", 3)) == 3


def test_the_writer_refuses_what_does_not_match(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 4 wrist, one a state, found 3"):
        write_episode(tmp_path, vectors(4), {"wrist": [picture(0)] * 3}, "x")
