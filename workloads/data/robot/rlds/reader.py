"""RLDS folders as the Open X-Embodiment sets come: TFRecord shards beside a features.json.

A record is an episode: one tf.train.Example whose `steps/…` features hold the values of all steps
one after another, images encoded.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.data.file_index import Arrays, load_or_build
from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.instructions import decode_instruction, distinct, instruction_of
from workloads.data.robot.lru import LruCache
from workloads.data.robot.options import Options
from workloads.data.robot.rlds.layout import Layout, read_features
from workloads.data.robot.rlds.shards import find_shards, record_at, records, shard_lengths
from workloads.data.tf_example import ExampleError, Feature, parse
from workloads.data.tfrecord import Damage, DamagedRecord, Frame
from workloads.errors import UserError

_VERSION = "rlds-3"
_EPISODES_KEPT = 4


class Rlds(Dataset):
    """The episodes of one split, shard after shard."""

    format = "rlds"
    fps: float | None = None

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        features = read_features(path, options)
        self.layout, self.text_keys = features.layout, features.text_keys
        self.unused = features.unused
        self.name, split, shards, others = find_shards(path, options.split)
        self.unused |= {f"split {name}": "data.split chooses another" for name in others}
        there = [file for file in shards if file.exists()]
        version = f"{_VERSION} {self.layout}"
        arrays = load_or_build(
            path, there, version, options.cache_dir, lambda file: _arrays(file, self.layout)
        )
        self._shards = [_shard(file, own) for file, own in zip(there, arrays, strict=True)]
        self._places = [(s, e) for s, shard in enumerate(self._shards) for e in range(len(shard))]
        self.records = _Records()
        self._weigh_damage(shards, shard_lengths(path, split, len(shards)))
        self.report([])

    def _weigh_damage(self, shards: Sequence[Path], stated: list[int] | None) -> None:
        """Count a lost episode as the others' average steps, a lost shard by its episodes."""
        lengths = [int(n) for shard in self._shards for n in np.diff(shard.starts)]
        usual = max(1, int(np.median(lengths))) if lengths else 1
        known = {shard.path: shard for shard in self._shards}
        counts = [len(shard) + len(shard.lost) for shard in self._shards]
        guess = max(1, int(np.median(counts))) if counts else 1
        expected = stated or [
            len(known[f]) + len(known[f].lost) if f in known else guess for f in shards
        ]
        for file, count in zip(shards, expected, strict=True):
            shard = known.get(file)
            if shard is None or (shard.is_unreadable and not len(shard)):
                reason = shard.lost[0].cause if shard is not None else "missing_file: missing file"
                cause = f"{reason} ({count} of {sum(expected)} episodes lost)"
                self.damage.append(Damage(str(file), 0, None, cause, count * usual))
                self.seen += count * usual
                continue
            self.damage += [item._replace(lost=usual) for item in shard.lost]
            self.damage += shard.damage
            missing = count - len(shard) - len(shard.lost)
            if missing > 0:
                cause = f"truncated: {missing} of {count} episodes of the shard are not in it"
                self.damage.append(Damage(str(file), len(shard), None, cause, missing * usual))
            self.seen += shard.seen + (len(shard.lost) + max(missing, 0)) * usual

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
            said=instruction_of(shard.texts, shard.which[steps], self.options, self.layout.numbers),
            cameras=tuple(self.layout.cameras),
            rows=shard.rows[steps],
            reader=_EpisodeImages(self, shard, inner),
            file=str(shard.path),
            color_order=self.options.color_order or "rgb",
        )


@dataclass(frozen=True)
class _Shard:
    """A file without its images; the steps of all its episodes are joined.

    texts: the distinct instructions; damage: of single steps; lost: episodes that cannot be used.
    """

    path: Path
    records: np.ndarray  # int64 [episodes]
    offsets: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray  # int64 [episodes + 1], first step of each
    rows: np.ndarray  # int64 [steps], number within the episode
    states: np.ndarray
    actions: np.ndarray
    which: np.ndarray  # int32 [steps], number of the instruction
    texts: list[str]
    seen: int
    damage: tuple[Damage, ...]
    lost: tuple[Damage, ...]

    @property
    def is_unreadable(self) -> bool:
        """Whether the file as a whole cannot be read."""
        return any(item.trouble in ("empty", "bad_file") for item in self.lost)

    def __len__(self) -> int:
        return len(self.records)


def _shard(path: Path, arrays: Arrays) -> _Shard:
    facts = json.loads(str(arrays.pop("facts")))
    return _Shard(
        path=path,
        texts=facts["texts"],
        seen=facts["seen"],
        damage=tuple(Damage(str(path), *item) for item in facts["damage"]),
        lost=tuple(Damage(str(path), *item) for item in facts["lost"]),
        **arrays,
    )


def _arrays(path: Path, layout: Layout) -> Arrays:
    damage: list[Damage] = []
    lost: list[Damage] = []
    places: list[tuple[int, int, int]] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    said: list[str] = []
    seen = 0
    for item in records(path):
        if not isinstance(item, Frame):
            lost.append(item)
            continue
        try:
            features = parse(item.payload)
            states, actions, wrong = _episode_vectors(features, layout)
            spoken = _texts(features, layout, len(actions))
        except (ExampleError, _Unusable) as error:
            cause = str(error) if isinstance(error, _Unusable) else f"bad_example: {error}"
            lost.append(Damage(str(path), item.record, item.offset, cause))
            continue
        seen += len(actions)
        damage.extend(
            Damage(str(path), item.record, item.offset, cause) for cause in wrong.values()
        )
        good = np.array([row for row in range(len(actions)) if row not in wrong], np.int64)
        columns.append((good, states[good], actions[good]))
        said += [spoken[row] for row in good]
        places.append((item.record, item.offset, len(item.payload)))
    texts, which = distinct(said)
    facts = {
        "damage": [tuple(item[1:]) for item in damage],
        "lost": [tuple(item[1:]) for item in lost],
        "texts": texts,
        "seen": seen,
    }
    joined = _joined(places, columns, layout)
    return {"facts": np.array(json.dumps(facts)), "which": which, **joined}


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
    empty = np.empty((len(actions), 0), np.float32)
    states = _matrix(features, layout.states) if layout.states else empty
    if len(states) != len(actions):
        raise _Unusable(f"wrong_dim: {len(states)} states and {len(actions)} actions")
    wrong: dict[int, str] = {}
    finite = np.isfinite(states).all(1) & np.isfinite(actions).all(1)
    for row in np.flatnonzero(~finite).tolist():
        wrong[row] = f"non_finite: non-finite value in step {row}"
    for key in layout.cameras.values():
        feature = features.get(f"steps/{key}")
        count = 0 if feature is None else _image_count(feature, layout.raw.get(key))
        if feature is None or count != len(actions):
            raise _Unusable(f"missing_feature: {count} images of {key} for {len(actions)} steps")
        if key in layout.raw:
            continue
        for row, encoded in enumerate(feature.values):
            if not images.looks_like_image(encoded):
                wrong.setdefault(row, f"bad_image: image decode error, {key} of step {row}")
    return states, actions, wrong


def _image_count(feature: Feature, shape: tuple[int, ...] | None) -> int:
    """Number of images of a feature: one a value, or raw pixels one after the other."""
    if isinstance(feature.values, np.ndarray):
        count, rest = divmod(len(feature.values), int(np.prod(shape or (1,))))
        return 0 if shape is None or rest else count
    return len(feature.values)


def _raw_image(feature: Feature, shape: tuple[int, ...], row: int) -> np.ndarray:
    """One image of pixels that are stored as numbers, or as bytes with or without zlib."""
    size = int(np.prod(shape))
    if isinstance(feature.values, np.ndarray):
        pixels = feature.values[row * size : (row + 1) * size].astype(np.uint8)
    else:
        content = feature.values[row]
        raw = content if len(content) == size else zlib.decompress(content)
        pixels = np.frombuffer(raw, np.uint8)
    return images.as_rgb(pixels.reshape(shape))


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


def _texts(features: dict[str, Feature], layout: Layout, steps: int) -> list[str]:
    """The instruction of every step, by the first feature that is not empty; '' for none."""
    for key in layout.texts:
        feature = features.get(key)
        if feature is None or not len(feature.values):
            continue
        if layout.letters > 1:
            found = _spelled(feature, layout.letters, key)
        else:
            found = [_text(value, key) for value in feature.values]
        if any(text.strip() for text in found):
            # One for each step, or one for all of them.
            first = next(text for text in found if text.strip())
            if len(found) != steps and len(set(found)) > 1:
                raise _Unusable(f"wrong_dim: {len(found)} texts of {key} for {steps} steps")
            return found if len(found) == steps else [first] * steps
    return [""] * steps


def _text(value: bytes | np.generic, key: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    text = decode_instruction(value)
    if text is None:
        raise _Unusable(f"bad_utf8: {key} is not UTF-8")
    return text


def _spelled(feature: Feature, letters: int, key: str) -> list[str]:
    """Texts whose bytes, or code points where any is above 255, are numbers up to a zero."""
    if not isinstance(feature.values, np.ndarray) or len(feature.values) % letters:
        raise _Unusable(f"wrong_dim: {key} is not {letters} numbers a step")
    texts = []
    for row in feature.values.reshape(-1, letters).tolist():
        used = row[: row.index(0)] if 0 in row else row
        try:
            text = (
                _text(bytes(used), key) if max(used, default=0) < 256 else "".join(map(chr, used))
            )
        except (ValueError, OverflowError) as error:
            raise _Unusable(f"bad_utf8: {key} is no text: {error}") from error
        texts.append(text)
    return texts


class _Records:
    """LRU cache of episodes: a record is read and checked as a whole."""

    def __init__(self) -> None:
        self._cache: LruCache[tuple[Path, int], dict[str, Feature]] = LruCache(_EPISODES_KEPT)

    def get(self, shard: _Shard, inner: int) -> dict[str, Feature]:
        record, offset = int(shard.records[inner]), int(shard.offsets[inner])
        length = int(shard.lengths[inner])
        return self._cache.get(
            (shard.path, record),
            lambda: parse(record_at(shard.path, offset, length, record)),
        )


class _EpisodeImages:
    """Images of one episode."""

    def __init__(self, dataset: Rlds, shard: _Shard, inner: int) -> None:
        self.dataset = dataset
        self.shard = shard
        self.inner = inner

    def encoded(self, camera: str, row: int) -> bytes | None:
        key = self.dataset.layout.cameras[camera]
        if key in self.dataset.layout.raw:
            return None
        try:
            return bytes(self._feature(key).values[row])
        # The file was written again since it was opened.
        except (ExampleError, KeyError, IndexError, ValueError, zlib.error) as error:
            raise self._damaged(f"missing_feature: {key} of step {row}: {error}") from error

    def pixels(self, camera: str, row: int) -> np.ndarray:
        key = self.dataset.layout.cameras[camera]
        shape = self.dataset.layout.raw.get(key)
        try:
            if shape is not None:
                return _raw_image(self._feature(key), shape, row)
            return images.decode(self.encoded(camera, row) or b"")
        except images.ImageError as error:
            raise self._damaged(f"bad_image: {key} of step {row}: {error}") from error
        except (ExampleError, KeyError, IndexError, ValueError, zlib.error) as error:
            raise self._damaged(f"missing_feature: {key} of step {row}: {error}") from error

    def _feature(self, key: str) -> Feature:
        return self.dataset.records.get(self.shard, self.inner)[f"steps/{key}"]

    def _damaged(self, cause: str) -> DamagedRecord:
        shard = self.shard
        record, offset = int(shard.records[self.inner]), int(shard.offsets[self.inner])
        return DamagedRecord(Damage(str(shard.path), record, offset, cause))

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.shard.path}: expected depth of {camera!r}, found none")
