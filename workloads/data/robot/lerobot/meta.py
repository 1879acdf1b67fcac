"""The meta folder of a LeRobot dataset: features, tasks, and the files of episodes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workloads import missing_files
from workloads.data.robot.images import camera_names, is_depth_name
from workloads.errors import UserError
from workloads.json_files import read_json, read_json_lines

BROKEN = (pa.ArrowException, OSError, KeyError, ValueError)
# Features that every dataset has, or that no policy here learns from.
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
_IMAGE_TYPES = ("image", "video", "depth")
# Names of the column of texts: of its own, or of a data frame's index.
_TASK_TEXTS = ("task", "__index_level_0__")


@dataclass(frozen=True)
class VideoSpan:
    """Span of an episode in a video file by the meta data: seconds; `end` None if not given."""

    file: Path
    start: float
    end: float | None


@dataclass(frozen=True)
class Entry:
    """The meta data of an episode: the file of its rows, and its videos by feature."""

    index: int
    length: int
    tasks: tuple[str, ...]
    file: Path
    videos: dict[str, VideoSpan]


class DatasetMeta:
    """The meta folder, read; raises UserError naming the file and the field at fault."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = read_json(root / "meta" / "info.json")
        self.version = str(self.info.get("codebase_version", ""))
        if not self.version.startswith(("v2.", "v3.")):
            raise UserError(
                f"{root / 'meta/info.json'}: expected codebase_version v3.0 or v2.1, found "
                f"{self.version!r}; convert it with LeRobot's own tools"
            )
        try:
            self.fps = float(self.info["fps"]) if self.info.get("fps") else None
            if self.fps is not None and not 0 < self.fps < math.inf:
                raise ValueError(f"an fps of {self.fps:g}")
            self.features: dict[str, dict[str, Any]] = self.info.get("features", {})
            if not isinstance(self.features, dict):
                raise ValueError(f"features of {self.features!r}")
            self.cameras, self.no_cameras = _cameras(self.features)
            self.tasks = self._tasks()
            self.entries = sorted(self._entries(), key=lambda entry: entry.index)
            self._refuse_repeated()
            self.totals = self._totals()
        # Fields that are missing, or of another kind than LeRobot writes.
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            found = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{root / 'meta'}: expected the fields of LeRobot {self.version}, found {found}"
            ) from error

    def _refuse_repeated(self) -> None:
        """An episode that is listed twice would be trained on twice, and held out from itself."""
        for entry, following in pairwise(self.entries):
            if entry.index == following.index:
                raise UserError(
                    f"{self.root / 'meta'}: expected each episode once, found episode "
                    f"{entry.index} twice; remove the second from the list of episodes"
                )

    @property
    def _is_v3(self) -> bool:
        return self.version.startswith("v3")

    @property
    def _video_keys(self) -> list[str]:
        return [key for key in self.cameras.values() if self.features[key]["dtype"] == "video"]

    def feature(self, key: str, option: str) -> str:
        """The key itself, where meta/info.json has such a feature.

        Raises UserError where it has none.
        """
        if key not in self.features:
            there = ", ".join(self.features) or "none"
            raise UserError(
                f"{self.root / 'meta/info.json'}: expected a feature {key!r}, found {there}; "
                f"name yours with {option}"
            )
        return key

    def _totals(self) -> tuple[int, int]:
        """Numbers of episodes and rows by info.json, else by the list of episodes."""
        episodes, rows = self.info.get("total_episodes"), self.info.get("total_frames")
        return (
            len(self.entries) if episodes is None else int(episodes),
            sum(entry.length for entry in self.entries) if rows is None else int(rows),
        )

    @property
    def other_splits(self) -> dict[str, Any]:
        """Splits of info.json besides "train", with their episodes."""
        stated = self.info.get("splits")
        splits = stated if isinstance(stated, dict) else {}
        return {name: episodes for name, episodes in splits.items() if name != "train"}

    def names(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the dimensions of the joined features, by info.json."""
        return tuple(name for key in keys for name in _names(self.features[key].get("names")))

    def size(self, keys: tuple[str, ...]) -> int | None:
        """Numbers of the joined features by info.json; None where it does not say."""
        shapes = [self.features[key].get("shape") for key in keys]
        if not all(
            isinstance(shape, list) and all(type(size) is int for size in shape) for shape in shapes
        ):
            return None
        return sum(math.prod(shape) for shape in shapes if shape)

    def unused(self, used: set[str]) -> dict[str, str]:
        """Features that nothing reads, each with its type and shape."""
        left = {key for key in self.features if key not in used | BOOKKEEPING}
        return {
            key: f"{facts.get('dtype', 'unknown')} {facts.get('shape', '')}".strip()
            for key, facts in self.features.items()
            if key in left
        }

    def _tasks(self) -> dict[int, str]:
        if not self._is_v3:
            file = self.root / "meta" / "tasks.jsonl"
            rows = read_json_lines(file)
            return _by_number(file, [(int(row["task_index"]), row["task"]) for row in rows])
        file = self.root / "meta" / "tasks.parquet"
        table = _read_table(file)
        columns = {name: table[name].to_pylist() for name in table.column_names}
        numbers = columns.pop("task_index", None)
        texts = {name: column for name, column in columns.items() if _is_text(column)}
        known = [texts[name] for name in _TASK_TEXTS if name in texts] or list(texts.values())
        if numbers is None or not known or any(column != known[0] for column in known):
            raise UserError(
                f"{file}: expected task_index and one column of texts, found "
                f"{', '.join(table.column_names)}; write the tasks again with LeRobot's own tools"
            )
        return _by_number(file, list(zip(numbers, known[0], strict=True)))

    def _entries(self) -> list[Entry]:
        if not self._is_v3:
            rows = read_json_lines(self.root / "meta" / "episodes.jsonl")
            return [self._entry_v2(row) for row in rows]
        folder = self.root / "meta" / "episodes"
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise UserError(
                f"{folder}: expected parquet files of episodes, found none; copy the dataset again"
            )
        return [
            self._entry_v3(file, row)
            for file in files
            for row in _read_table(file, without="stats/").to_pylist()
        ]

    def _entry_v2(self, row: Mapping[str, Any]) -> Entry:
        index = int(row["episode_index"])
        chunk = index // int(self.info.get("chunks_size", 1000))
        named: dict[str, Any] = {"episode_chunk": chunk, "episode_index": index}
        videos = {}
        for key in self._video_keys:
            name = self._video_path(key).format(video_key=key, **named)
            videos[key] = VideoSpan(self.root / name, 0.0, None)
        file = self.root / self.info["data_path"].format(**named)
        return Entry(index, int(row["length"]), _texts(row.get("tasks")), file, videos)

    def _video_path(self, key: str) -> str:
        path = self.info.get("video_path")
        if not isinstance(path, str):
            raise ValueError(f"a video_path of {path!r} in info.json, and {key} of type video")
        return path

    def _entry_v3(self, meta_file: Path, row: Mapping[str, Any]) -> Entry:
        videos = {}
        for key in self._video_keys:
            column = f"videos/{key}"
            lacking = [
                f"{column}/{name}"
                for name in ("chunk_index", "file_index", "from_timestamp")
                if row.get(f"{column}/{name}") is None
            ]
            if lacking:
                raise UserError(
                    f"{meta_file}: expected a column {lacking[0]} for the videos of {key}, found "
                    "none; LeRobot's own converter writes it, or leave the camera out of "
                    "meta/info.json"
                )
            name = self._video_path(key).format(
                video_key=key,
                chunk_index=_whole(row, f"{column}/chunk_index"),
                file_index=_whole(row, f"{column}/file_index"),
            )
            start, end = row[f"{column}/from_timestamp"], row.get(f"{column}/to_timestamp")
            videos[key] = VideoSpan(
                self.root / name, float(start), None if end is None else float(end)
            )
        chunk, number = _whole(row, "data/chunk_index"), _whole(row, "data/file_index")
        file = self.root / self.info["data_path"].format(chunk_index=chunk, file_index=number)
        tasks = _texts(row.get("tasks"))
        return Entry(_whole(row, "episode_index"), _whole(row, "length"), tasks, file, videos)


def _whole(row: Mapping[str, Any], column: str) -> int:
    """A whole number, which data frames also write as a float, or in a list."""
    found = row[column]
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, int | float) or not math.isfinite(found) or found != int(found):
        raise ValueError(f"{found!r} in the column {column}")
    return int(found)


def _texts(stated: Any) -> tuple[str, ...]:
    """An episode's tasks, which some writers state as one text instead of a list."""
    return tuple(map(as_text, [stated] if isinstance(stated, str) else stated or ()))


def _is_text(column: list[Any]) -> bool:
    return all(isinstance(value, str | None) for value in column)


def as_text(stated: Any) -> str:
    """A recorded text, '' for null; ValueError for all else: its notation is no instruction."""
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if not isinstance(stated, str | None):
        raise ValueError(f"{stated!r} where a text is expected")
    if stated and not stated.isascii() and any("\ud800" <= letter <= "\udfff" for letter in stated):
        raise ValueError(f"{stated!r}, a text with half a letter (a lone surrogate)")
    return stated or ""


def _by_number(file: Path, tasks: Sequence[tuple[int, Any]]) -> dict[int, str]:
    """The text of each task, '' for null; UserError where a number has two."""
    found: dict[int, str] = {}
    for number, stated in tasks:
        text = as_text(stated)
        if found.setdefault(number, text) != text:
            raise UserError(
                f"{file}: expected one text for task_index {number}, found {found[number]!r} and "
                f"{text!r}; give each task a number of its own"
            )
    return found


def cause_of(file: Path, error: Exception) -> str:
    """Why a file cannot be read, with the class of damage, on one line."""
    if not file.exists():
        return "missing_file: missing file"
    if missing_files.is_pointer(file):
        return f"bad_file: {missing_files.WHAT_TO_DO}"
    return f"bad_file: cannot be read, {' '.join(str(error).split())}"


def _cameras(
    features: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Colour cameras with their features, and other images with the reason why they are none."""
    images = [key for key, facts in features.items() if facts.get("dtype") in _IMAGE_TYPES]
    reasons = {key: _no_colour(key, features[key]) for key in images}
    colour = [key for key, reason in reasons.items() if reason is None]
    return (
        camera_names(colour, lambda key: re.sub(r"^observation\.(images\.)?", "", key)),
        {key: reason for key, reason in reasons.items() if reason is not None},
    )


def _no_colour(key: str, facts: Mapping[str, Any]) -> str | None:
    """Why a feature's images are not of a colour camera; None where they are."""
    said = {**facts, **(facts.get("video_info") or {}), **(facts.get("info") or {})}
    if facts["dtype"] == "depth" or said.get("video.is_depth_map") or said.get("is_depth_map"):
        return "depth"
    shape = [size for size in facts.get("shape") or () if isinstance(size, int)]
    axes = facts.get("names")
    named = dict(zip(axes, shape, strict=False)) if isinstance(axes, list) else {}
    channels = named.get("channels", named.get("channel", shape[-1] if shape else 3))
    if channels == 1 or (len(shape) == 3 and shape[0] == 1):
        return "one channel"
    return "depth, by its name" if is_depth_name(key) else None


def _names(stated: Any) -> list[str]:
    """The names of a vector's dimensions: lists, by kind of part or not, or numbers by name."""
    if isinstance(stated, Mapping):
        if all(isinstance(value, int) for value in stated.values()):
            return sorted(map(str, stated), key=lambda name: int(stated[name]))
        parts = {part: _names(names) for part, names in stated.items()}
        found = [name for names in parts.values() for name in names]
        if len(set(found)) < len(found):  # two arms with the same joints
            return [f"{part}_{name}" for part, names in parts.items() for name in names]
        return found
    if isinstance(stated, list):
        return [name for item in stated for name in _names(item)]
    return [] if stated is None else [str(stated)]


def _read_table(file: Path, without: str | None = None) -> pa.Table:
    """A whole file without the columns `without…`: statistics take most of some files."""
    try:
        names = pq.read_schema(file).names
        wanted = [name for name in names if without is None or not name.startswith(without)]
        return pq.read_table(file, columns=wanted)
    except BROKEN as error:
        cause = cause_of(file, error).partition(": ")[2]
        ending = "" if missing_files.is_pointer(file) else "; copy it again"
        raise UserError(f"{file}: expected a parquet file, found {cause}{ending}") from error
