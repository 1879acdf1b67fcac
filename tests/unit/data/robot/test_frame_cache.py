"""Decoded frames kept in a memory map: what is read is what was decoded, whatever happened."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.support.robot_data import crane_episode, lerobot_video_v3
from workloads.data.robot import open_dataset
from workloads.data.robot.frame_cache import FrameCache, cache_key, room_for

pytestmark = pytest.mark.unit
SHAPE = (6, 4, 3)


def frame(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


def never() -> np.ndarray:
    raise AssertionError("decoded again")


@pytest.mark.parametrize("source", ["v1", "v2", "npz", "lerobot_v3_0"])
def test_a_pillow_image_is_the_same(source: str) -> None:
    """What is resized, read without an array in between, colours stored as bgr too."""
    dataset = open_dataset(Path("tests/golden/crane_x7") / source)
    for episode in dataset:
        for camera in episode.cameras:
            assert np.array_equal(np.asarray(episode.pillow(camera, 3)), episode.image(camera, 3))


def test_a_frame_is_decoded_once(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "key", 5, SHAPE)
    for number in (3, 0, 4):
        assert np.array_equal(cache.get(number, lambda n=number: frame(n)), frame(number))
    again = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(again.get(3, never), frame(3)) and again.filled == 3
    kept = again.get(0, never)
    kept[...] = 0
    assert np.array_equal(again.get(0, never), frame(0)), "what is handed out is the caller's own"


def test_a_frame_that_was_half_written_is_decoded_again(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "key", 3, SHAPE)
    cache.get(1, lambda: frame(1))
    file = tmp_path / "key/frames.u8"
    with file.open("r+b") as opened:
        opened.seek(1 * 72 + 10)
        opened.write(b"\0" * 20)
    again = FrameCache(tmp_path / "key", 3, SHAPE)
    assert np.array_equal(again.get(1, lambda: frame(1)), frame(1))
    assert np.array_equal(again.get(1, never), frame(1))


def test_an_image_that_cannot_be_read_is_not_kept(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "key", 2, SHAPE)
    with pytest.raises(AssertionError):
        cache.get(0, never)
    assert cache.filled == 0


def _fill(cache: FrameCache, numbers: range) -> None:
    for number in numbers:
        cache.get(number, lambda n=number: frame(n))


def test_processes_fill_it_together(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "key", 40, SHAPE)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_fill, args=(cache, numbers))
        for numbers in (range(40), range(0, 40, 2))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0] and cache.filled == 40
    assert all(np.array_equal(cache.get(n, never), frame(n)) for n in range(40))


def test_the_key_changes_with_files_cameras_and_size(tmp_path: Path) -> None:
    file = crane_episode(tmp_path / "logs/episode_0")
    keys = {cache_key(open_dataset(tmp_path / "logs"), ("primary",), size) for size in (224, 64)}
    keys.add(cache_key(open_dataset(tmp_path / "logs"), ("wrist",), 224))
    keys.add(
        cache_key(open_dataset(tmp_path / "logs", drop_last_placeholder=False), ("primary",), 224)
    )
    os.utime(file, (1, 1))
    keys.add(cache_key(open_dataset(tmp_path / "logs"), ("primary",), 224))
    (tmp_path / "logs/episode_0/meta.json").unlink()
    keys.add(cache_key(open_dataset(tmp_path / "logs"), ("primary",), 224))
    assert len(keys) == 6
    root = lerobot_video_v3(tmp_path / "videos")
    first = cache_key(open_dataset(root), ("top",), 224)
    os.utime(next(root.rglob("*.mp4")), (1, 1))
    assert cache_key(open_dataset(root), ("top",), 224) != first


def test_room_is_half_of_what_is_free(tmp_path: Path) -> None:
    assert room_for(tmp_path / "not/there", 1 << 20) and not room_for(tmp_path, 1 << 60)


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    cache = FrameCache(tmp_path / "key", 2, SHAPE)
    monkeypatch.setattr(os, "pwrite", full)
    assert np.array_equal(cache.get(1, lambda: frame(1)), frame(1)) and cache.filled == 0
    monkeypatch.setattr(os, "pwrite", lambda *_: 5)
    assert np.array_equal(cache.get(1, lambda: frame(1)), frame(1)) and cache.filled == 0
