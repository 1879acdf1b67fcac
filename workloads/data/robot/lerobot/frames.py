"""Images of LeRobot episodes: cells of parquet files, and the frame of a video for each row.

A row's frame is found by its number where a video has as many frames as its episodes have rows:
recorders and encoders keep their own clocks, and times that drift show the frames of others. Only
where the numbers differ do times count, and then they have to fit exactly.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads import missing_files
from workloads.data.file_index import Arrays, load_or_build
from workloads.data.robot import images
from workloads.data.robot.lerobot.meta import BROKEN
from workloads.data.robot.lerobot.video import VideoError, frame_times, video_facts
from workloads.data.robot.lru import LruCache
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.data.robot.lerobot.reader import LeRobot

_INDEX_VERSION = "video-frames-3"
_NEAR = 0.25  # tolerance of a time, in frames


@dataclass(frozen=True)
class Tie:
    """How rows are matched to frames of a video file.

    starts: number of each episode's first frame; None where times count. damage: why no frame of
    the file can be used.
    """

    starts: dict[int, int] | None
    damage: Damage | None = None
    said: str = ""


def tie_videos(dataset: "LeRobot") -> dict[Path, Tie]:
    """For every video file of the dataset, how its episodes' rows are matched to frames."""
    holders: dict[Path, list[tuple[float, int, str]]] = defaultdict(list)
    for number, entry in enumerate(dataset.meta.entries):
        for key, span in entry.videos.items():
            holders[span.file].append((span.start, number, key))
    there = [file for file in holders if file.is_file()]
    counts = load_or_build(dataset.path, there, _INDEX_VERSION, dataset.options.cache_dir, _counted)
    known = dict(zip(there, counts, strict=True))
    ties = {
        file: _tie(dataset, file, sorted(episodes), known.get(file))
        for file, episodes in holders.items()
    }
    by_time = [tie.said for tie in ties.values() if tie.said]
    if by_time:
        dataset.note(
            f"{len(by_time)} videos have more frames than rows, which are found by their times; "
            f"the first is {by_time[0]}"
        )
    _note_grey(dataset, {file: str(facts["pixels"]) for file, facts in known.items()})
    return ties


def _note_grey(dataset: "LeRobot", pixels: dict[Path, str]) -> None:
    """Name cameras whose videos are grey, which depth maps are, too."""
    cameras = {key: camera for camera, key in dataset.meta.cameras.items()}
    spans = [item for entry in dataset.meta.entries for item in entry.videos.items()]
    grey = {cameras[key]: span.file for key, span in spans if "gray" in pixels.get(span.file, "")}
    for camera, file in grey.items():
        dataset.note(
            f"camera {camera} has grey videos ({pixels[file]}), as depth maps are: they are "
            "trained on as colours; name the colour cameras with data.cameras"
        )


def _counted(file: Path) -> Arrays:
    """Frames of a video, its pixel format, and what is wrong with it ('' for nothing)."""
    try:
        frames, pixels = video_facts(file)
        return {"frames": np.array(frames), "pixels": np.array(pixels), "problem": np.array("")}
    except VideoError as error:
        return {"frames": np.array(0), "pixels": np.array(""), "problem": np.array(str(error))}


def _tie(
    dataset: "LeRobot", file: Path, episodes: list[tuple[float, int, str]], counted: Arrays | None
) -> Tie:
    """episodes: (start in seconds, number, feature) of each that lies in the file, in order."""
    rows = {number: _rows_of(dataset, number) for _, number, _ in episodes}
    total = sum(rows.values())

    def refused(cause: str) -> Tie:
        return Tie(None, Damage(str(file), 0, None, f"{cause} ({total} rows lost)", total))

    if counted is None:
        return refused("missing_file: missing video")
    if str(counted["problem"]):
        return refused(f"bad_image: {counted['problem']}")
    frames = int(counted["frames"])
    if frames == total:
        starts = np.cumsum([0, *rows.values()])
        return Tie(dict(zip(rows, starts.tolist(), strict=False)))
    if frames < total:
        return refused(f"bad_image: {frames} frames for {total} rows")
    off, shared = _misplaced(dataset, file, episodes)
    if off or shared:
        return refused(
            f"bad_image: {frames} frames for {total} rows, and {off} rows with a time over a "
            f"quarter of a frame from any frame, {shared} that share one"
        )
    return Tie(None, said=f"{file}: {frames} frames for {total} rows")


def _rows_of(dataset: "LeRobot", number: int) -> int:
    """Number of an episode's rows: those found, or by the meta data for an unreadable file."""
    return len(dataset.rows[number].rows) or dataset.meta.entries[number].length


def _misplaced(
    dataset: "LeRobot", file: Path, episodes: list[tuple[float, int, str]]
) -> tuple[int, int]:
    """Number of rows whose time matches no frame, and of rows that share a frame."""
    times = frame_times(file)
    spacing = (times[-1] - times[0]) / max(len(times) - 1, 1)
    wanted = np.concatenate(
        [start + dataset.rows[number].timestamps for start, number, _ in episodes]
    )
    after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    before_is_nearer = (
        wanted - times[after - 1] <= times[np.minimum(after, len(times) - 1)] - wanted
    )
    nearest = np.where(before_is_nearer, after - 1, np.minimum(after, len(times) - 1))
    near = np.abs(times[nearest] - wanted) <= _NEAR * spacing + 1e-6  # false for NaN
    return int((~near).sum()), len(nearest) - len(np.unique(nearest))


class ImageColumns:
    """Encoded images of the row groups last used: parquet cannot be read in smaller pieces."""

    def __init__(self, kept: int) -> None:
        self._cache: LruCache[tuple[Path, str, int], pa.Array] = LruCache(kept)
        self._starts: dict[Path, list[int]] = {}

    def cell(self, file: Path, key: str, row: int) -> tuple[bytes | None, str | None]:
        """The bytes of an image, or the path of its file, of which most writers make a struct.

        Raises what pyarrow raises, and ValueError for a column of something else.
        """
        starts = self._row_groups(file)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        column = self._cache.get((file, key, group), lambda: _read_group(file, key, group))
        found = column[row - starts[group]].as_py()
        if isinstance(found, dict):
            return found.get("bytes"), found.get("path")
        if not isinstance(found, bytes | str | None):
            raise ValueError(f"it holds {column.type}, expected bytes or paths of images")
        return (found, None) if isinstance(found, bytes) else (None, found)

    def _row_groups(self, file: Path) -> list[int]:
        if file not in self._starts:
            facts = pq.ParquetFile(file).metadata
            counts = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
            self._starts[file] = [0, *np.cumsum(counts)[:-1].tolist()]
        return self._starts[file]


def _read_group(file: Path, key: str, group: int) -> pa.Array:
    return pq.ParquetFile(file).read_row_group(group, columns=[key])[key].combine_chunks()


class EpisodeImages:
    """Images of one episode."""

    def __init__(self, dataset: "LeRobot", number: int) -> None:
        self.dataset = dataset
        self.number = number
        self.entry = dataset.meta.entries[number]

    def encoded(self, camera: str, row: int) -> bytes | None:
        key = self.dataset.meta.cameras[camera]
        if key in self.entry.videos:
            return None
        try:
            content, path = self.dataset.columns.cell(self.entry.file, key, row)
            if content:
                return content
            if path:
                return self._read(key, path)
            raise ValueError("an empty cell")
        except FileNotFoundError as error:
            raise self._damaged(row, f"missing_file: no image {error}") from None
        except BROKEN as error:
            cause = f"bad_file: {key} cannot be read, {' '.join(str(error).split())}"
            raise self._damaged(row, cause) from error

    def pixels(self, camera: str, row: int) -> np.ndarray:
        key = self.dataset.meta.cameras[camera]
        if key in self.entry.videos:
            return self._video_frame(key, row)
        try:
            return images.decode(self.encoded(camera, row) or b"")
        except images.ImageError as error:
            raise self._damaged(row, f"bad_image: {key}: {error}") from error

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.entry.file}: expected depth of {camera!r}, found none")

    def _read(self, key: str, path: str) -> bytes:
        """Read an image file beside the parquet files, by its path or its bare name."""
        root, index = self.dataset.path, self.entry.index
        folder = root / "images" / key
        places = [root / path, folder / path]
        places += [folder / f"episode{mark}{index:06d}" / path for mark in ("_", "-")]
        places += [folder / f"episode_{index}" / path]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise FileNotFoundError(path)
        if missing_files.is_pointer(file):
            raise OSError(f"{file}: {missing_files.WHAT_TO_DO}")
        return file.read_bytes()

    def _video_frame(self, key: str, row: int) -> np.ndarray:
        span = self.entry.videos[key]
        tie = self.dataset.ties[span.file]
        if tie.damage is not None:
            raise DamagedRecord(tie.damage)
        rows = self.dataset.rows[self.number]
        at = int(np.searchsorted(rows.rows, row))
        try:
            if tie.starts is not None:
                number = tie.starts[self.number] + int(rows.positions[at])
                return self.dataset.videos.frame_number(span.file, number)
            seconds = span.start + float(rows.timestamps[at])
            return self.dataset.videos.frame(span.file, seconds)
        except VideoError as error:
            damage = Damage(str(span.file), row, None, f"bad_image: image decode error, {error}")
            raise DamagedRecord(damage) from error

    def _damaged(self, row: int, cause: str) -> DamagedRecord:
        return DamagedRecord(Damage(str(self.entry.file), row, None, cause))
