"""LeRobot data sets, v3.0 and v2.1 (v2.0 too): parquet, with pictures inside or as videos."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode, Options, instruction_of
from workloads.json_files import read_json, read_json_lines
from workloads.data.robot.lru import LruCache
from workloads.data.robot.lerobot.video import VideoError, Videos
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

log = logging.getLogger(__name__)

STATE_KEYS = ("observation.state",)
ACTION_KEYS = ("action",)
_BROKEN = (pa.ArrowException, OSError, KeyError, ValueError)
_FILES_KEPT = 2
_GROUPS_KEPT = 2


@dataclass(frozen=True)
class Entry:
    """What the meta data says of an episode: its file, and for each video file and start."""

    index: int
    length: int
    tasks: tuple[str, ...]
    file: Path
    videos: dict[str, tuple[Path, float]]


class LeRobot(Dataset):
    """Vectors are read a file at a time and kept, pictures and videos when asked for."""

    format = "lerobot"

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.info = read_json(path / "meta" / "info.json")
        self.version = _known_version(path, str(self.info.get("codebase_version", "")))
        try:
            self._read_meta(path, options)
        # Fields that are missing, or of another kind than LeRobot writes.
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            found = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path / 'meta'}: expected the fields of LeRobot {self.version}, found {found}; "
                "copy the folder anew"
            ) from error
        self._files = _Columns({*self.state_keys, *self.action_keys})
        # A step looks through every camera: with fewer, each picture would cost a whole group.
        self.pictures = _PictureColumns(max(_GROUPS_KEPT, len(self.camera_keys)))
        self.videos = Videos(len(self.camera_keys))
        # Vectors are small, and a training asks for any step of any episode.
        self._known: dict[int, _Rows] = {}
        self._seen: dict[int, int] = {}
        self._told = False

    def _read_meta(self, path: Path, options: Options) -> None:
        self.fps = float(self.info["fps"]) if self.info.get("fps") else None
        self.name = str(self.info.get("robot_type") or path.resolve().name)
        self.features: dict[str, dict[str, Any]] = self.info.get("features", {})
        self.state_keys = _known_keys(self, options.state_keys or STATE_KEYS)
        self.action_keys = _known_keys(self, options.action_keys or ACTION_KEYS)
        self.camera_keys = _cameras(self.features)
        self.tasks = _tasks(path, self.version)
        self._entries = _entries(self)

    def __len__(self) -> int:
        return len(self._entries)

    def episode(self, number: int) -> Episode:
        entry = self._entries[number]
        if number not in self._known:
            self._known[number] = self._read(entry)
        rows = self._known[number]
        times = dict(zip(rows.rows.tolist(), rows.timestamps.tolist(), strict=True))
        return self._episode(entry, rows, times)

    def _read(self, entry: Entry) -> "_Rows":
        """The episode's vectors; what is wrong with them is reported."""
        try:
            table = self._files.get(entry.file)
            rows = _Rows.of(table, entry, self.state_keys, self.action_keys)
        except _BROKEN as error:
            kind = "bad_file" if os.path.exists(entry.file) else "missing_file"
            cause = f"{kind}: episode {entry.index} cannot be read, {_words(error)}"
            self._note(entry, [Damage(str(entry.file), 0, None, cause)], 1)
            return _Rows.nothing()
        found = len(rows.rows) + len(rows.damage)
        damage = list(rows.damage)
        if found < entry.length:
            cause = (
                f"truncated: {entry.length} rows of episode {entry.index} expected, {found} found"
            )
            damage.append(Damage(str(entry.file), found, None, cause))
        self._note(entry, damage, max(found, 1))
        self._tell_of_tasks(entry, rows)
        return rows

    def _tell_of_tasks(self, entry: Entry, rows: "_Rows") -> None:
        """An episode here has one instruction; that others are left out is said, once."""
        if len(set(rows.tasks)) > 1 and not self._told:
            self._told = True
            text = "%s: episode %d has %d tasks; the first of an episode counts for all its steps"
            log.warning(text, entry.file, entry.index, len(set(rows.tasks)))

    def _episode(self, entry: Entry, rows: "_Rows", times: dict[int, float]) -> Episode:
        texts = [*(self.tasks.get(task, "") for task in rows.tasks[:1]), *entry.tasks]
        return Episode(
            name=f"episode_{entry.index:06d}",
            states=rows.states,
            actions=rows.actions,
            instruction=instruction_of(texts, self.options),
            cameras=tuple(self.camera_keys),
            rows=rows.rows,
            source=_Source(self, entry, times),
            file=str(entry.file),
            color_order=self.options.color_order or "rgb",
            timesteps=rows.frames,
            timestamps=rows.timestamps,
        )

    def _note(self, entry: Entry, damage: list[Damage], seen: int) -> None:
        self._seen[entry.index] = seen
        self.report(damage, sum(self._seen.values()) if damage else 0)


@dataclass(frozen=True)
class _Rows:
    """The sound rows of an episode, and what is wrong with the others."""

    rows: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    frames: np.ndarray
    tasks: list[int]
    damage: tuple[Damage, ...]

    @classmethod
    def nothing(cls) -> "_Rows":
        empty, none = np.empty((0, 0), np.float32), np.empty(0, np.int64)
        return cls(none, empty, empty, np.empty(0), none, [], ())

    @classmethod
    def of(
        cls, table: pa.Table, entry: Entry, states: tuple[str, ...], actions: tuple[str, ...]
    ) -> "_Rows":
        rows = np.flatnonzero(table["episode_index"].to_numpy() == entry.index)
        if len(rows) == 0:
            return cls.nothing()
        mine = table.slice(int(rows[0]), int(rows[-1] - rows[0]) + 1)
        state, action = _vectors(mine, states, entry), _vectors(mine, actions, entry)
        sound = np.isfinite(state).all(1) & np.isfinite(action).all(1)
        cause = "non_finite: non-finite value in state or action"
        damage = tuple(Damage(str(entry.file), int(row), None, cause) for row in rows[~sound])
        return cls(
            rows[sound],
            state[sound],
            action[sound],
            mine["timestamp"].to_numpy().astype(np.float64)[sound],
            mine["frame_index"].to_numpy()[sound],
            mine["task_index"].to_numpy().tolist() if "task_index" in mine.column_names else [],
            damage,
        )


def _vectors(table: pa.Table, keys: tuple[str, ...], entry: Entry) -> np.ndarray:
    """float32 [rows, D]: the columns side by side."""
    blocks = []
    for key in keys:
        column = table[key].combine_chunks()
        nested = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        flat = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
        if len(flat) % max(len(table), 1):
            raise UserError(
                f"{entry.file}: expected {key} of one size in episode {entry.index}, found "
                f"{len(flat)} values in {len(table)} rows; mend or remove the episode"
            )
        blocks.append(flat.reshape(len(table), -1).astype(np.float32))
    return np.concatenate(blocks, axis=1)


def _known_keys(dataset: LeRobot, keys: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [key for key in keys if key not in dataset.features]
    if unknown:
        there = ", ".join(dataset.features) or "none"
        raise UserError(
            f"{dataset.path / 'meta/info.json'}: expected a feature {unknown[0]!r}, found {there}; "
            "name yours with state_keys or action_keys"
        )
    return keys


def _cameras(features: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Camera name → feature."""
    keys = [key for key, facts in features.items() if facts.get("dtype") in ("image", "video")]
    return {re.sub(r"^observation\.(images\.)?", "", key): key for key in keys}


def _tasks(root: Path, version: str) -> dict[int, str]:
    if not version.startswith("v3"):
        file = root / "meta" / "tasks.jsonl"
        return {int(row["task_index"]): str(row["task"]) for row in read_json_lines(file)}
    table = _read_meta(root / "meta" / "tasks.parquet")
    # The text is the index of a data frame, whose name differs between writers.
    text = next((name for name in table.column_names if name != "task_index"), None)
    if text is None or "task_index" not in table.column_names:
        raise UserError(f"{root / 'meta/tasks.parquet'}: expected task_index and a text column")
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


def _read_meta(file: Path, without: str | None = None) -> pa.Table:
    """A whole file but for the columns `without…`: statistics are most of some and not needed."""
    try:
        names = pq.read_schema(file).names
        wanted = [name for name in names if without is None or not name.startswith(without)]
        return pq.read_table(file, columns=wanted)
    except _BROKEN as error:
        raise UserError(
            f"{file}: expected a parquet file, found {_words(error)}; copy it anew"
        ) from error


def _words(error: Exception) -> str:
    """What pyarrow says, on one line."""
    return " ".join(str(error).split())


def _entries(dataset: LeRobot) -> list[Entry]:
    return _entries_v3(dataset) if dataset.version.startswith("v3") else _entries_v2(dataset)


def _known_version(path: Path, version: str) -> str:
    if version.startswith(("v2.", "v3.")):
        return version
    raise UserError(
        f"{path / 'meta/info.json'}: expected codebase_version v3.0 or v2.1, found {version!r}; "
        "convert it with LeRobot's own tools"
    )


def _entries_v3(dataset: LeRobot) -> list[Entry]:
    entries = []
    videos = _video_keys(dataset)
    for file in sorted((dataset.path / "meta" / "episodes").rglob("*.parquet")):
        for row in _read_meta(file, without="stats/").to_pylist():
            entries.append(_entry_v3(dataset, row, videos))
    if not entries:
        raise UserError(
            f"{dataset.path / 'meta/episodes'}: expected parquet files of episodes, found none; "
            "copy the data set anew"
        )
    return sorted(entries, key=lambda entry: entry.index)


def _entry_v3(dataset: LeRobot, row: dict[str, Any], videos: list[str]) -> Entry:
    data_path, video_path = dataset.info["data_path"], dataset.info.get("video_path")
    places = {}
    for key in videos:
        chunk, number = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        place = str(video_path).format(video_key=key, chunk_index=chunk, file_index=number)
        places[key] = (dataset.path / place, float(row[f"videos/{key}/from_timestamp"]))
    chunk, number = row["data/chunk_index"], row["data/file_index"]
    file = dataset.path / data_path.format(chunk_index=chunk, file_index=number)
    tasks = tuple(row.get("tasks") or ())
    return Entry(int(row["episode_index"]), int(row["length"]), tasks, file, places)


def _entries_v2(dataset: LeRobot) -> list[Entry]:
    entries = []
    size = int(dataset.info.get("chunks_size", 1000))
    for row in read_json_lines(dataset.path / "meta" / "episodes.jsonl"):
        index = int(row["episode_index"])
        words = {"episode_chunk": index // size, "episode_index": index}
        videos = {}
        for key in _video_keys(dataset):
            place = str(dataset.info["video_path"]).format(video_key=key, **words)
            videos[key] = (dataset.path / place, 0.0)
        file = dataset.path / dataset.info["data_path"].format(**words)
        entries.append(
            Entry(index, int(row["length"]), tuple(row.get("tasks") or ()), file, videos)
        )
    return sorted(entries, key=lambda entry: entry.index)


def _video_keys(dataset: LeRobot) -> list[str]:
    return [key for key, facts in dataset.features.items() if facts.get("dtype") == "video"]


class _Columns:
    """The vectors of the data files last used."""

    def __init__(self, vectors: set[str]) -> None:
        self.wanted = {"timestamp", "frame_index", "episode_index", "task_index"} | vectors
        self._cache: LruCache[Path, pa.Table] = LruCache(_FILES_KEPT)

    def get(self, file: Path) -> pa.Table:
        return self._cache.get(file, lambda: self._load(file))

    def _load(self, file: Path) -> pa.Table:
        return pq.read_table(file, columns=sorted(self.wanted & set(pq.read_schema(file).names)))


class _PictureColumns:
    """Encoded pictures of the row groups last used: parquet cannot be read in smaller pieces."""

    def __init__(self, kept: int) -> None:
        self._cache: LruCache[tuple[Path, str, int], pa.Array] = LruCache(kept)
        self._starts: dict[Path, list[int]] = {}

    def get(self, root: Path, file: Path, key: str, row: int) -> bytes:
        """The bytes of a cell; raises what pyarrow raises, and ValueError where there are none."""
        starts = self._row_groups(file)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        column = self._cache.get((file, key, group), lambda: _read_group(file, key, group))
        cell = column[row - starts[group]].as_py() or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if cell.get("path"):
            return (root / cell["path"]).read_bytes()
        raise ValueError("an empty cell")

    def _row_groups(self, file: Path) -> list[int]:
        if file not in self._starts:
            facts = pq.ParquetFile(file).metadata
            counts = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
            self._starts[file] = [0, *np.cumsum(counts)[:-1].tolist()]
        return self._starts[file]


def _read_group(file: Path, key: str, group: int) -> pa.Array:
    return pq.ParquetFile(file).read_row_group(group, columns=[key])[key].combine_chunks()


class _Source:
    """Pictures of one episode; `times` gives the second within the episode for each row."""

    def __init__(self, dataset: LeRobot, entry: Entry, times: dict[int, float]) -> None:
        self.dataset = dataset
        self.entry = entry
        self.times = times

    def encoded(self, camera: str, row: int) -> bytes | None:
        key = self.dataset.camera_keys[camera]
        if key in self.entry.videos:
            return None
        try:
            return self.dataset.pictures.get(self.dataset.path, self.entry.file, key, row)
        except _BROKEN as error:
            raise self._damaged(row, f"bad_file: {key} cannot be read, {_words(error)}") from error

    def pixels(self, camera: str, row: int) -> np.ndarray:
        key = self.dataset.camera_keys[camera]
        if key in self.entry.videos:
            return self._video_frame(key, row)
        try:
            return images.decode(self.encoded(camera, row) or b"")
        except images.PictureError as error:
            raise self._damaged(row, f"bad_image: {key}: {error}") from error

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.entry.file}: expected depth of {camera!r}, found none")

    def _video_frame(self, key: str, row: int) -> np.ndarray:
        file, start = self.entry.videos[key]
        try:
            return self.dataset.videos.frame(file, start + self.times[row])
        except VideoError as error:
            damage = Damage(str(file), row, None, f"bad_image: image decode error, {error}")
            raise DamagedRecord(damage) from error

    def _damaged(self, row: int, cause: str) -> DamagedRecord:
        return DamagedRecord(Damage(str(self.entry.file), row, None, cause))
