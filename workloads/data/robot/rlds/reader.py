"""RLDS folders as the Open X-Embodiment sets come: TFRecord shards beside a features.json.

A record is an episode: one tf.train.Example whose `steps/…` features hold the values of all steps
one after another, pictures encoded.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.data.file_index import Arrays, load_or_build
from workloads.data.robot import images
from workloads.data.robot.episode import (
    Dataset,
    Episode,
    Options,
    decode_instruction,
    instruction_of,
)
from workloads.data.tf_example import ExampleError, Feature, parse
from workloads.data.robot.lru import LruCache
from workloads.data.robot.rlds.layout import Layout, read_layout
from workloads.data.tfrecord import Damage, DamagedRecord, Frame, read_at, scan
from workloads.errors import UserError

INSTRUCTION_KEYS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/natural_language_instruction",
    "steps/observation/language_instruction",
    "steps/instruction",
    "episode_metadata/language_instruction",
    "language_instruction",
)
_VERSION = "rlds-1"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d+)-of-(?P<count>\d+)$")
_DEFAULT_SPLIT = "train"
_EPISODES_KEPT = 4


class Rlds(Dataset):
    """The episodes of one split, shard after shard."""

    format = "rlds"
    fps: float | None = None

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.layout = read_layout(path, options)
        self.name, shards = _shards(path, options.split)
        there = [file for file in shards if file.exists()]
        self._shards = _load(path, there, self.layout, options.cache_dir)
        self._places = [(s, e) for s, shard in enumerate(self._shards) for e in range(len(shard))]
        self.records = _Records()
        self.damage.extend(
            Damage(str(file), 0, None, "missing_file: missing file")
            for file in shards
            if not file.exists()
        )
        for shard in self._shards:
            self.damage.extend(shard.damage)
        # An episode is a record, but a share of steps is what the budget is about.
        self.report([], sum(shard.seen for shard in self._shards))

    def __len__(self) -> int:
        return len(self._places)

    def episode(self, number: int) -> Episode:
        place, inner = self._places[number]
        shard = self._shards[place]
        steps = slice(int(shard.starts[inner]), int(shard.starts[inner + 1]))
        return Episode(
            name=f"{shard.path.name}#{int(shard.records[inner])}",
            states=shard.states[steps],
            actions=shard.actions[steps],
            instruction=instruction_of([shard.instructions[inner]], self.options),
            cameras=tuple(self.layout.cameras),
            rows=shard.rows[steps],
            source=_Source(self, shard, inner),
            file=str(shard.path),
            color_order=self.options.color_order or "rgb",
        )


def _shards(path: Path, split: str | None) -> tuple[str, list[Path]]:
    """The data set's name and all shards of the split, those that should be there included."""
    matches = [m for m in (_SHARD.match(file.name) for file in sorted(path.iterdir())) if m]
    splits = sorted({match["split"] for match in matches})
    chosen = split or (_DEFAULT_SPLIT if _DEFAULT_SPLIT in splits else None)
    if chosen is None and len(splits) == 1:
        chosen = splits[0]
    mine = [match for match in matches if match["split"] == chosen]
    if not mine:
        raise UserError(
            f"{path}: expected TFRecord shards of split {chosen or 'train'}, found splits: "
            f"{', '.join(splits) or 'none'}; name one with split, or download the shards"
        )
    stem, count, digits = mine[0]["stem"], int(mine[0]["count"]), len(mine[0]["count"])
    names = [
        f"{stem}-{chosen}.tfrecord-{number:0{digits}d}-of-{count:0{digits}d}"
        for number in range(count)
    ]
    return stem, [path / name for name in names]


@dataclass(frozen=True)
class _Shard:
    """What is known of a file without its pictures; steps of all its episodes in one row."""

    path: Path
    records: np.ndarray  # int64 [episodes]
    offsets: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray  # int64 [episodes + 1], first step of each
    rows: np.ndarray  # int64 [steps], number within the episode
    states: np.ndarray
    actions: np.ndarray
    instructions: list[str]
    seen: int
    damage: tuple[Damage, ...]

    def __len__(self) -> int:
        return len(self.records)


def _load(
    root: Path, files: Sequence[Path], layout: Layout, cache_dir: Path | None
) -> list[_Shard]:
    version = f"{_VERSION} {layout}"
    known = load_or_build(root, files, version, cache_dir, lambda path: _arrays(path, layout))
    return [_shard(path, arrays) for path, arrays in zip(files, known, strict=True)]


def _shard(path: Path, arrays: Arrays) -> _Shard:
    facts = json.loads(str(arrays.pop("facts")))
    damage = tuple(Damage(str(path), *item) for item in facts["damage"])
    return _Shard(
        path=path,
        instructions=facts["instructions"],
        seen=facts["seen"],
        damage=damage,
        **arrays,
    )


def _arrays(path: Path, layout: Layout) -> Arrays:
    damage: list[Damage] = []
    places: list[tuple[int, int, int]] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    instructions: list[str] = []
    seen = 0
    for item in scan(path):
        if not isinstance(item, Frame):
            damage.append(item)
            seen += 1
            continue
        try:
            features = parse(item.payload)
            states, actions, wrong = _episode_vectors(features, layout)
            instructions.append(_instruction(features))
        except (ExampleError, _Unusable) as error:
            cause = str(error) if isinstance(error, _Unusable) else f"bad_example: {error}"
            damage.append(Damage(str(path), item.record, item.offset, cause))
            seen += 1
            continue
        seen += len(actions)
        damage.extend(
            Damage(str(path), item.record, item.offset, cause) for cause in wrong.values()
        )
        good = np.array([row for row in range(len(actions)) if row not in wrong], np.int64)
        columns.append((good, states[good], actions[good]))
        places.append((item.record, item.offset, len(item.payload)))
    facts = {
        "damage": [tuple(item[1:]) for item in damage],
        "instructions": instructions,
        "seen": seen,
    }
    return {"facts": np.array(json.dumps(facts)), **_joined(places, columns, layout)}


def _joined(
    places: list[tuple[int, int, int]],
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    layout: Layout,
) -> Arrays:
    table = np.array(places, np.int64).reshape(-1, 3)
    sizes = [sum(size for _, size in keys) for keys in (layout.states, layout.actions)]
    rows = [np.empty(0, np.int64), *(column[0] for column in columns)]
    states = [np.empty((0, sizes[0]), np.float32), *(column[1] for column in columns)]
    actions = [np.empty((0, sizes[1]), np.float32), *(column[2] for column in columns)]
    return {
        "records": table[:, 0],
        "offsets": table[:, 1],
        "lengths": table[:, 2],
        "starts": np.cumsum([len(block) for block in rows]),
        "rows": np.concatenate(rows),
        "states": np.concatenate(states),
        "actions": np.concatenate(actions),
    }


class _Unusable(Exception):
    """Why an episode that parses cannot be used."""


def _episode_vectors(
    features: dict[str, Feature], layout: Layout
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """States [T, D], actions [T, A], and for each step that cannot be used its cause."""
    actions = _matrix(features, layout.actions)
    states = _matrix(features, layout.states)
    if len(states) != len(actions):
        raise _Unusable(f"wrong_dim: {len(states)} states and {len(actions)} actions")
    wrong: dict[int, str] = {}
    finite = np.isfinite(states).all(1) & np.isfinite(actions).all(1)
    for row in np.flatnonzero(~finite).tolist():
        wrong[row] = f"non_finite: non-finite value in step {row}"
    for key in layout.cameras.values():
        feature = features.get(f"steps/{key}")
        if feature is None or feature.kind != "bytes" or len(feature.values) != len(actions):
            count = 0 if feature is None else len(feature.values)
            raise _Unusable(f"missing_feature: {count} pictures of {key} for {len(actions)} steps")
        for row, encoded in enumerate(feature.values):
            if not images.looks_like_picture(encoded):
                wrong.setdefault(row, f"bad_image: image decode error, {key} of step {row}")
    return states, actions, wrong


def _matrix(features: dict[str, Feature], keys: tuple[tuple[str, int], ...]) -> np.ndarray:
    blocks = []
    for key, size in keys:
        feature = features.get(f"steps/{key}")
        if feature is None or not isinstance(feature.values, np.ndarray):
            raise _Unusable(f"missing_feature: missing feature steps/{key}")
        if len(feature.values) % size:
            raise _Unusable(
                f"wrong_dim: steps/{key} of {len(feature.values)} values, {size} a step"
            )
        blocks.append(feature.values.reshape(-1, size).astype(np.float32))
    if len({len(block) for block in blocks}) > 1:
        raise _Unusable(f"wrong_dim: {', '.join(key for key, _ in keys)} differ in steps")
    return np.concatenate(blocks, axis=1)


def _instruction(features: dict[str, Feature]) -> str:
    for key in INSTRUCTION_KEYS:
        feature = features.get(key)
        if feature is None or feature.kind != "bytes":
            continue
        for raw in feature.values:
            text = decode_instruction(bytes(raw))
            if text is None:
                raise _Unusable(f"bad_utf8: {key} is not UTF-8")
            if text.strip():
                return text
    return ""


class _Records:
    """The episodes last used: a record is read and checked as a whole."""

    def __init__(self) -> None:
        self._cache: LruCache[tuple[Path, int], dict[str, Feature]] = LruCache(_EPISODES_KEPT)

    def get(self, shard: _Shard, inner: int) -> dict[str, Feature]:
        record, offset = int(shard.records[inner]), int(shard.offsets[inner])
        length = int(shard.lengths[inner])
        return self._cache.get(
            (shard.path, record),
            lambda: parse(read_at(shard.path, offset, length, record)),
        )


class _Source:
    """Pictures of one episode."""

    def __init__(self, dataset: Rlds, shard: _Shard, inner: int) -> None:
        self.dataset = dataset
        self.shard = shard
        self.inner = inner

    def encoded(self, camera: str, row: int) -> bytes | None:
        key = self.dataset.layout.cameras[camera]
        try:
            features = self.dataset.records.get(self.shard, self.inner)
            return bytes(features[f"steps/{key}"].values[row])
        # The file was written anew since it was opened.
        except (ExampleError, KeyError, IndexError) as error:
            raise self._damaged(f"missing_feature: {key} of step {row}: {error}") from error

    def pixels(self, camera: str, row: int) -> np.ndarray:
        try:
            return images.decode(self.encoded(camera, row) or b"")
        except images.PictureError as error:
            cause = f"bad_image: {self.dataset.layout.cameras[camera]} of step {row}: {error}"
            raise self._damaged(cause) from error

    def _damaged(self, cause: str) -> DamagedRecord:
        shard = self.shard
        record, offset = int(shard.records[self.inner]), int(shard.offsets[self.inner])
        return DamagedRecord(Damage(str(shard.path), record, offset, cause))

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.shard.path}: expected depth of {camera!r}, found none")
