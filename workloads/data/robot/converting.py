"""Conversion steps that all formats share: episodes prepared on all cores, a folder written whole.

Each worker process reads, checks and encodes whole episodes; the caller gets them in order and
only writes. At most a few episodes wait to be written, so memory is bounded.
"""

import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.lerobot.encode import Codec, encode_video
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

# Starting processes costs more than a few hundred images.
_IMAGES_WORTH_PROCESSES = 300
_WAITING_EACH = 2  # prepared episodes a worker may be ahead


@dataclass(frozen=True)
class Converted:
    """What was written: an episode with gaps may become one for each of its runs."""

    path: Path
    episodes: int
    frames: int
    skipped: tuple[Damage, ...]  # steps left out because an image cannot be read
    kept: int = 0  # images whose bytes were kept as they were


@dataclass(frozen=True)
class Recipe:
    """How images become what is written.

    size: squares of so many pixels; None as they are. video: the codec of mp4 files with `fps`
    frames a second, written below `folder`; None for single images. histograms: whether they are
    needed. jpeg: what has to be encoded becomes JPEG, else PNG.
    """

    cameras: tuple[str, ...]
    size: int | None = None
    video: Codec | None = None
    fps: float = 0.0
    folder: Path = Path()
    histograms: bool = True
    jpeg: bool = False


@dataclass
class PreparedEpisode:
    """An episode ready to be written: runs of sound steps, and what each step's images became.

    encoded and histograms by step and camera; shapes by camera; videos: for every run and camera
    the file.
    """

    episode: Episode
    runs: list[np.ndarray]
    encoded: dict[int, dict[str, bytes]] = field(default_factory=dict)
    histograms: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    videos: list[dict[str, Path]] = field(default_factory=list)
    skipped: list[Damage] = field(default_factory=list)
    kept: int = 0


def prepared_episodes(
    dataset: Dataset, recipe: Recipe, workers: int | None = None
) -> Iterator[PreparedEpisode]:
    """Every episode in order, prepared by `workers` processes (all cores by default)."""
    total = int(dataset.lengths.sum()) * len(recipe.cameras)
    count = min(workers or len(os.sched_getaffinity(0)), len(dataset))
    if count < 2 or total < _IMAGES_WORTH_PROCESSES:
        yield from (_prepare(dataset, recipe, number) for number in range(len(dataset)))
        return
    # Not forked: threads of the libraries in use would not come along, but their locks would.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _start, (dataset, recipe)) as pool:
        waiting: deque[Future[PreparedEpisode]] = deque()
        try:
            for number in range(len(dataset)):
                waiting.append(pool.submit(_prepare_here, number))
                if len(waiting) > _WAITING_EACH * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[Dataset, Recipe] | None = None  # of this worker process, set once at its start


def _start(dataset: Dataset, recipe: Recipe) -> None:
    global _work
    _work = dataset, recipe
    # Ctrl-C goes to all processes of a terminal; the one that writes ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepare_here(number: int) -> PreparedEpisode:
    assert _work is not None
    return _prepare(*_work, number)


def _prepare(dataset: Dataset, recipe: Recipe, number: int) -> PreparedEpisode:
    episode = dataset[number]
    done = PreparedEpisode(episode, [])
    for t in range(len(episode)):
        try:
            frames = {camera: _frame(episode, recipe, camera, t) for camera in recipe.cameras}
        except DamagedRecord as error:
            done.skipped.append(error.damage)
            continue
        done.encoded[t] = {}
        for camera, pixels in frames.items():
            _check_shape(episode, done.shapes, camera, pixels.shape)
            if recipe.video is None:
                done.encoded[t][camera] = _encoded(episode, recipe, done, camera, t, pixels)
        if recipe.histograms:
            done.histograms[t] = {name: images.histogram(p) for name, p in frames.items()}
    done.runs = runs(episode.rows, np.array(list(done.encoded), np.int64))
    if recipe.video is not None:
        for at, run in enumerate(done.runs):
            done.videos.append(_videos(episode, recipe, run, f"{number:06d}-{at:03d}"))
    # What workers hand back travels between processes: readers hold whole datasets.
    done.episode = episode.without_reader()
    return done


def _frame(episode: Episode, recipe: Recipe, camera: str, step: int) -> np.ndarray:
    pixels = episode.image(camera, step)
    return pixels if recipe.size is None else images.resize(pixels, recipe.size)


def _encoded(
    episode: Episode,
    recipe: Recipe,
    done: PreparedEpisode,
    camera: str,
    step: int,
    pixels: np.ndarray,
) -> bytes:
    """The image's own bytes where its pixels stay as they are, else encoded again."""
    if recipe.size is None and episode.color_order == "rgb":
        own = episode.encoded(camera, step)
        if own is not None and images.is_jpeg_or_png(own):
            done.kept += 1
            return own
    return images.encode_jpeg(pixels) if recipe.jpeg else images.encode_png(pixels)


def _videos(episode: Episode, recipe: Recipe, run: np.ndarray, name: str) -> dict[str, Path]:
    assert recipe.video is not None
    found = {}
    for camera in recipe.cameras:
        file = recipe.folder / f"{name}-{camera.replace('/', '_')}.mp4"
        frames = [_frame(episode, recipe, camera, int(t)) for t in run]
        encode_video(file, frames, recipe.fps, recipe.video)
        found[camera] = file
    return found


def _check_shape(
    episode: Episode, shapes: dict[str, tuple[int, ...]], camera: str, shape: tuple[int, ...]
) -> None:
    check_shapes(episode.file, shapes, {camera: shape})
    shapes[camera] = shape


def check_shapes(
    file: str, known: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the images' shapes (H, W, 3) of each camera with those that are known.

    Raises UserError where images of a camera differ in size.
    """
    for camera, shape in found.items():
        if known.get(camera, shape) != shape:
            raise UserError(
                f"{file}: expected images of {camera} of {known[camera]}, found {shape}; "
                "give one size to all (--size), or choose other cameras"
            )


def runs(rows: np.ndarray, sound: np.ndarray) -> list[np.ndarray]:
    """Stretches of consecutive sound steps, cut wherever the recording has a gap.

    rows int64 [T]: each step's number in the file; sound int64 [S]: indices of the sound steps,
    which are returned in parts of [S_i].
    """
    if len(sound) == 0:
        return []
    return np.split(sound, np.flatnonzero(np.diff(rows[sound]) != 1) + 1)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `target` when all went well and is gone when not.

    Raises UserError where `target` holds files, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"expected an empty folder, found files in {target}; choose another")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{target}: expected to write a dataset, found {error}; name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
