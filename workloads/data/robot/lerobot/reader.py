"""LeRobot datasets, v3.0 and v2.1 (v2.0 too): parquet, with images inside or as videos."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workloads import missing_files
from workloads.data.robot.episode import Dataset, Episode, usual_sizes
from workloads.data.robot.instructions import distinct, instruction_of
from workloads.data.robot.lerobot.frames import EpisodeImages, ImageColumns, tie_videos
from workloads.data.robot.lerobot.meta import (
    BOOKKEEPING,
    BROKEN,
    DatasetMeta,
    Entry,
    as_text,
    cause_of,
)
from workloads.data.robot.lerobot.video import OpenVideos
from workloads.data.robot.lru import LruCache
from workloads.data.robot.options import Options
from workloads.data.tfrecord import Damage

STATE_KEYS = ("observation.state",)
ACTION_KEYS = ("action",)
_TASK_KEY = "task_index"
_NOT_FINITE = "non_finite: non-finite value in state or action"
_NOT_WHOLE = "wrong_dim: state or action missing, or of another size than in most rows"
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
_FILES_KEPT = 2
_MOST_NAMED = 5  # episodes
_GROUPS_KEPT = 2


class LeRobot(Dataset):
    """Vectors are read once and kept, images and videos when asked for."""

    format = "lerobot"

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.meta = DatasetMeta(path)
        self.name = str(self.meta.info.get("robot_type") or path.resolve().name)
        self.fps = self.meta.fps
        usual_state = STATE_KEYS if STATE_KEYS[0] in self.meta.features else ()
        self.state_keys = self._known(options.state_keys or usual_state, "state_keys")
        self.action_keys = self._known(options.action_keys or ACTION_KEYS, "action_keys")
        self.text_key = self._known((options.instruction_key or _TASK_KEY,), "instruction_key")[0]
        texts = [key for key, facts in self.meta.features.items() if facts.get("dtype") == "string"]
        self.text_keys = ("task", *texts)
        # A step reads every camera: with fewer groups kept, each image would cost a whole group.
        self.columns = ImageColumns(max(_GROUPS_KEPT, len(self.meta.cameras)))
        self.videos = OpenVideos(len(self.meta.cameras))
        self._name_what_is_unused()
        # Numbers of tasks that have no text, where another text of the episode stands in.
        self.silent_tasks: Counter[int | None] = Counter()
        self.rows = self._read_all()
        self.ties = tie_videos(self)
        self.damage += [tie.damage for tie in self.ties.values() if tie.damage is not None]
        self.report([])

    def __len__(self) -> int:
        return len(self.meta.entries)

    def content_files(self) -> set[Path]:
        spans = (span for entry in self.meta.entries for span in entry.videos.values())
        return super().content_files() | {span.file for span in spans if span.file.is_file()}

    def episode(self, number: int) -> Episode:
        entry, rows = self.meta.entries[number], self.rows[number]
        said = instruction_of(rows.texts, rows.which, self.options, rows.numbers)
        episode = Episode(
            name=f"episode_{entry.index:06d}",
            states=rows.states,
            actions=rows.actions,
            said=said,
            cameras=tuple(self.meta.cameras),
            rows=rows.rows,
            reader=EpisodeImages(self, number),
            file=str(entry.file),
            color_order=self.options.color_order or "rgb",
            timesteps=rows.frames,
            timestamps=rows.timestamps,
        )
        return episode if rows.sound.all() else episode.take(rows.sound)

    def _known(self, keys: tuple[str, ...], option: str) -> tuple[str, ...]:
        known = {_TASK_KEY}  # a column that info.json may leave out
        return tuple(key if key in known else self.meta.feature(key, option) for key in keys)

    def _name_what_is_unused(self) -> None:
        used = {*self.state_keys, *self.action_keys, self.text_key, *self.meta.cameras.values()}
        self.unused = self.meta.unused(used)
        for key, reason in self.meta.no_cameras.items():
            self.unused[key] = f"no colour camera: {reason}"

    def _read_all(self) -> list["_Rows"]:
        """Read the rows of every episode and record damage."""
        files: LruCache[Path, pa.Table] = LruCache(_FILES_KEPT)
        broken: dict[Path, str] = {}
        found = [self._read(entry, files, broken) for entry in self.meta.entries]
        usual = usual_sizes((rows.sizes, len(rows.rows)) for rows in found)
        for number, (entry, rows) in enumerate(zip(self.meta.entries, found, strict=True)):
            if len(rows.rows) and rows.sizes != usual:
                cause = (
                    f"wrong_dim: episode {entry.index} has states and actions of {rows.sizes}, "
                    f"expected {usual}"
                )
                self.damage.append(Damage(str(entry.file), 0, None, cause, len(rows.rows)))
                found[number] = _Rows.nothing()
        self.seen = sum(
            max(len(rows.rows), entry.length)
            for entry, rows in zip(self.meta.entries, found, strict=True)
        )
        self.action_names = self._names(self.action_keys, usual[1])
        self.state_names = self._names(self.state_keys, usual[0])
        self._compare_with_meta(found)
        self.compare_rates("meta/info.json", [rows.timestamps for rows in found])
        return found

    def _names(self, keys: tuple[str, ...], size: int) -> tuple[str, ...] | None:
        stated = self.meta.size(keys)
        if size and stated not in (None, size):
            self.note(
                f"meta/info.json says {stated} numbers for {', '.join(keys)}, the rows have {size}"
            )
        names = self.meta.names(keys)
        if len(names) == size:
            return names or None
        if size and len(names) > 1:  # one stands for the whole vector
            self.note(
                f"meta/info.json names {len(names)} dimensions of {', '.join(keys)}, the rows have "
                f"{size}: they go by their numbers"
            )
        return None

    def _compare_with_meta(self, found: list["_Rows"]) -> None:
        """Note where the rows contradict the meta data and are used nevertheless."""
        pairs = list(zip(self.meta.entries, found, strict=True))
        longer = [(entry, len(rows.rows)) for entry, rows in pairs if len(rows.rows) > entry.length]
        if longer:
            entry, count = longer[0]
            self.note(
                f"{len(longer)} episodes have more rows than the meta data says, and all are used; "
                f"the first is episode {entry.index}: {entry.length} said, {count} found"
            )
        mixed = [(entry, rows.disorder) for entry, rows in pairs if rows.disorder]
        if mixed:
            self.note(
                f"{len(mixed)} episodes have rows out of order, which are used in the file's; the "
                f"first is episode {mixed[0][0].index}: {mixed[0][1]}"
            )
        spoken = [
            (entry, list(dict.fromkeys(text for text in rows.texts if text.strip())))
            for entry, rows in pairs
            if rows.which is None
        ]
        several = [(entry, texts) for entry, texts in spoken if len(texts) > 1]
        if several:
            entry, texts = several[0]
            self.note(
                f"{len(several)} episodes list several tasks, and no task_index says which row has "
                f"which; the first is episode {entry.index}, where {texts[0]!r} stands for all"
            )
        if self.silent_tasks:
            numbers = ", ".join(map(str, sorted(self.silent_tasks, key=str)))
            self.note(
                f"{self.silent_tasks.total()} rows have a task_index without a text in meta/tasks "
                f"({numbers}): another text of their episode stands in"
            )
        said, listed = self.meta.totals, (len(pairs), sum(entry.length for entry, _ in pairs))
        if said != listed:
            self.note(
                f"meta/info.json says {said[0]} episodes and {said[1]} rows, the list of episodes "
                f"has {listed[0]} and {listed[1]}: what is not listed is not used"
            )
        if others := self.meta.other_splits:
            named = ", ".join(f"{name} ({episodes})" for name, episodes in others.items())
            self.note(
                f"meta/info.json has splits besides train, {named}: episodes of all splits are used"
            )

    def _read(
        self, entry: Entry, files: LruCache[Path, pa.Table], broken: dict[Path, str]
    ) -> "_Rows":
        """Rows of an episode; of an unreadable file all rows by the meta data count as lost."""
        lost, cause = entry.length, broken.get(entry.file)
        try:
            if cause is None:
                table = files.get(entry.file, lambda: self._load(entry.file))
                rows = _Rows.of(table, entry, self)
        except BROKEN as error:
            cause = broken[entry.file] = cause_of(entry.file, error)
        if cause is not None:
            text = f"{cause} (episode {entry.index}, {lost} rows lost)"
            self.damage.append(Damage(str(entry.file), 0, None, text, lost))
            return _Rows.nothing()
        count = len(rows.rows)
        if count < lost:
            cause = f"truncated: {lost} rows of episode {entry.index} expected, {count} found"
            if not count:
                there = pc.unique(table["episode_index"]).to_pylist()[:_MOST_NAMED]
                cause += f"; the file has rows of episode {', '.join(map(str, there))}"
            self.damage.append(Damage(str(entry.file), count, None, cause, lost - count))
        causes = np.where(rows.whole, _NOT_FINITE, _NOT_WHOLE)
        self.damage += [
            Damage(str(entry.file), int(rows.rows[at]), None, str(causes[at]))
            for at in np.flatnonzero(~rows.sound)
        ]
        return rows

    def _load(self, file: Path) -> pa.Table:
        if missing_files.is_pointer(file):
            raise OSError(missing_files.WHAT_TO_DO)
        there = set(pq.read_schema(file).names)
        for column in sorted(there - {*self.meta.features, *BOOKKEEPING}):
            self.unused.setdefault(column, "a column that meta/info.json does not list")
        wanted = {"timestamp", "frame_index", "episode_index", _TASK_KEY, self.text_key}
        wanted |= {*self.state_keys, *self.action_keys}
        return pq.read_table(file, columns=sorted(wanted & there))


@dataclass(frozen=True)
class _Rows:
    """All rows of an episode, `sound` false for those that cannot be used."""

    rows: np.ndarray  # int64 [T], in the file
    states: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    frames: np.ndarray  # frame_index
    positions: np.ndarray  # of the row's frame among those of the episode
    whole: np.ndarray  # bool [T], false where a vector is missing or of another size
    sound: np.ndarray  # bool [T]
    texts: list[str]
    which: np.ndarray | None
    numbers: bool

    @property
    def sizes(self) -> tuple[int, int]:
        return self.states.shape[1], self.actions.shape[1]

    @property
    def disorder(self) -> str:
        """Description of the first row out of order; '' where there is none."""
        back = np.flatnonzero(np.diff(self.frames) <= 0)
        if len(back):
            before, here = self.frames[back[0] : back[0] + 2]
            return f"frame_index {here} comes after {before}"
        apart = np.flatnonzero(np.diff(self.rows) != 1)
        return f"rows of others stand before its row {apart[0] + 1}" if len(apart) else ""

    @classmethod
    def nothing(cls) -> "_Rows":
        empty, none = np.empty((0, 0), np.float32), np.empty(0, np.int64)
        times, sound = np.empty(0), np.empty(0, bool)
        return cls(none, empty, empty, times, none, none, sound, sound, [], none, False)

    @classmethod
    def of(cls, table: pa.Table, entry: Entry, dataset: LeRobot) -> "_Rows":
        rows = np.flatnonzero(table["episode_index"].to_numpy() == entry.index)
        if len(rows) == 0:
            return cls.nothing()
        together = rows[-1] - rows[0] + 1 == len(rows)
        mine = table.slice(int(rows[0]), len(rows)) if together else table.take(rows)
        state, state_whole = _vectors(mine, dataset.state_keys)
        action, action_whole = _vectors(mine, dataset.action_keys)
        texts, which, numbers = _texts(mine, entry, dataset)
        frames, order = mine["frame_index"].to_numpy(), np.arange(len(mine))
        return cls(
            rows,
            state,
            action,
            mine["timestamp"].to_numpy().astype(np.float64),
            frames,
            frames if np.array_equal(np.sort(frames), order) else order,
            state_whole & action_whole,
            np.isfinite(state).all(1) & np.isfinite(action).all(1),
            texts,
            which,
            numbers,
        )


def _texts(
    table: pa.Table, entry: Entry, dataset: LeRobot
) -> tuple[list[str], np.ndarray | None, bool]:
    """The texts of an episode, the text of each row, and whether texts are numbers."""
    key = dataset.text_key
    if key not in table.column_names:
        return list(entry.tasks), None, False
    values = table[key].to_pylist()
    if key != _TASK_KEY:
        kind = table[key].type
        numbers = not pa.types.is_null(kind) and any(is_kind(kind) for is_kind in _NUMBERS)
        if numbers:
            values = [None if value is None else str(value) for value in values]
        texts, which = distinct([as_text(value) for value in values])
        return texts, which, numbers
    by_row = [dataset.meta.tasks.get(task, "") for task in values]
    texts, which = distinct(by_row)
    if entry.tasks or any(text.strip() for text in texts):
        pairs = zip(values, by_row, strict=True)
        dataset.silent_tasks.update(task for task, text in pairs if not text.strip())
    if any(text.strip() for text in texts) or not entry.tasks:
        return texts, which, False
    # A table of tasks without this one: the episode's own list may still have it.
    return list(entry.tasks), None, False


def _vectors(table: pa.Table, keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, D]: the columns side by side; bool [rows]: where each has its usual size.

    The others are NaN: values of one row must never slide into the next.
    """
    blocks, whole = [np.empty((len(table), 0), np.float32)], np.ones(len(table), bool)
    for key in keys:
        column = table[key].combine_chunks()
        is_list = any(is_kind(column.type) for is_kind in _LISTS)
        kind = column.type.value_type if is_list else column.type
        if not any(is_number(kind) for is_number in _NUMBERS):
            raise ValueError(f"{key} holds {column.type}, expected a list of numbers a row")
        if not is_list:  # a number a row
            blocks.append(column.to_numpy(zero_copy_only=False).astype(np.float32)[:, None])
            continue
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        size = int(np.bincount(sizes).argmax())
        fits = sizes == size
        values = column.filter(pa.array(fits)).flatten().to_numpy(zero_copy_only=False)
        block = np.full((len(table), size), np.nan, np.float32)
        block[fits] = values.reshape(int(fits.sum()), size)
        blocks.append(block)
        whole &= fits
    return np.concatenate(blocks, axis=1), whole
