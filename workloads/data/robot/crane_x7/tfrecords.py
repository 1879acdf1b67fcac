"""CRANE-X7 recordings as TFRecord: one file an episode, one tf.train.Example a step.

Two schemas are in use, distinguished by their keys: v1 (`observation/state`,
`observation/image`) and v2 (`observation/proprio`, `observation/image_<camera>`).
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workloads.data.file_index import Arrays, load_or_build
from workloads.data.robot import images
from workloads.data.robot.instructions import decode_instruction, distinct
from workloads.data.tf_example import ExampleError, Feature, parse, tensor
from workloads.data.tfrecord import Damage, DamagedRecord, Frame, read_at, scan

FPS = 10.0
DATASET_NAME = "crane_x7"
JOINTS = (
    "shoulder_pan",
    "shoulder_tilt",
    "upper_arm_twist",
    "upper_arm_rotate",
    "lower_arm_fixed",
    "lower_arm_revolute",
    "wrist",
    "gripper",
)
# rad, in the order of JOINTS; the maker's limits
JOINT_LIMITS = (
    (-2.74017, 2.74017),
    (-1.5708, 1.5708),
    (-2.74017, 2.74017),
    (-2.77507, 1.7e-5),
    (-2.74017, 2.74017),
    (-1.5708, 1.5708),
    (-2.9147, 2.9147),
    (-0.0873, 1.5708),
)

STATE_KEYS = ("observation/proprio", "observation/state")
ACTION_KEYS = ("action",)
INSTRUCTION_KEYS = ("task/language_instruction", "language_instruction", "prompt")
TIMESTEP_KEY = "observation/timestep"
TIMESTAMP_KEY = "observation/timestamp"
NAME_KEY = "dataset_name"

_VERSION = "crane-x7-4"
_CAMERA = re.compile(r"observation/image(?:s?[/_](?P<name>.+))?$")
_DEPTH = re.compile(r"observation/depth(?:s?[/_](?P<name>.+))?$")
_NOT_CAMERAS = {"height", "width", "channels", "format", "encoding"}
KNOWN_KEYS = (
    *STATE_KEYS, *ACTION_KEYS, *INSTRUCTION_KEYS, TIMESTEP_KEY, TIMESTAMP_KEY, NAME_KEY
)  # fmt: skip
MAIN_CAMERA = "primary"
_LONGEST_TEXT = 2000  # bytes


class _Step(NamedTuple):
    record: int
    offset: int
    length: int
    state: np.ndarray
    action: np.ndarray
    timestep: int | None
    timestamp: float | None
    images: dict[str, str]  # camera → key
    depths: dict[str, str]
    text: str
    dataset_name: str
    features: frozenset[str]
    is_raw: bool


@dataclass(frozen=True)
class TFRecordRecording:
    """A file without its images; arrays hold the good records only.

    texts: the distinct instructions, which int32 [T]: the one of each record; features: all keys,
    text_keys: those that hold text.
    """

    path: Path
    records: np.ndarray  # int64 [T]
    offsets: np.ndarray  # int64 [T]
    lengths: np.ndarray  # int64 [T]
    states: np.ndarray  # float32 [T, D]
    actions: np.ndarray  # float32 [T, A]
    timesteps: np.ndarray | None  # int64 [T]
    timestamps: np.ndarray | None  # float64 [T]
    cameras: dict[str, str]
    depths: dict[str, str]
    texts: list[str]
    which: np.ndarray
    dataset_name: str
    features: list[str]
    text_keys: list[str]
    is_raw: bool  # images are stored as their pixels
    seen: int
    damage: tuple[Damage, ...]


def load(
    root: Path, files: Sequence[Path], cache_dir: Path | None, text_key: str | None = None
) -> list[TFRecordRecording]:
    """Read files of `root` once, checksums included, or take their entries from `cache_dir`.

    text_key: the feature that holds the instructions, if not one of INSTRUCTION_KEYS.
    """
    keys = (text_key,) if text_key else INSTRUCTION_KEYS
    version = f"{_VERSION} {text_key or ''}".strip()
    known = load_or_build(root, files, version, cache_dir, lambda path: _arrays(path, keys))
    return [_recording(path, arrays) for path, arrays in zip(files, known, strict=True)]


def _recording(path: Path, arrays: Arrays) -> TFRecordRecording:
    facts = json.loads(str(arrays["facts"]))
    damage = tuple(Damage(str(path), *item) for item in facts.pop("damage"))
    return TFRecordRecording(
        path=path,
        damage=damage,
        timesteps=arrays.get("timesteps"),
        timestamps=arrays.get("timestamps"),
        records=arrays["records"],
        offsets=arrays["offsets"],
        lengths=arrays["lengths"],
        states=arrays["states"],
        actions=arrays["actions"],
        which=arrays["which"],
        **facts,
    )


def _arrays(path: Path, text_keys: tuple[str, ...]) -> Arrays:
    steps: list[_Step] = []
    damage: list[Damage] = []
    texts_seen: set[str] = set()
    for item in scan(path):
        step: _Step | Damage = (
            _step(str(path), item, text_keys, texts_seen) if isinstance(item, Frame) else item
        )
        if isinstance(step, _Step):
            steps.append(step)
        else:
            damage.append(step)
    seen = len(steps) + len(damage)
    cameras, depths = _usual(steps, "images"), _usual(steps, "depths")
    steps, odd = _without_odd(str(path), steps, {*cameras.values(), *depths.values()})
    texts, which = distinct([step.text for step in steps])
    facts = {
        "cameras": cameras,
        "depths": depths,
        "texts": texts,
        "features": sorted({key for step in steps for key in step.features}),
        "text_keys": sorted(texts_seen),
        "is_raw": any(step.is_raw for step in steps),
        "dataset_name": next((step.dataset_name for step in steps if step.dataset_name), ""),
        "seen": seen,
        "damage": sorted(tuple(item[1:]) for item in [*damage, *odd]),
    }
    return {"facts": np.array(json.dumps(facts)), "which": which, **_columns(steps)}


def _columns(steps: list[_Step]) -> Arrays:
    columns = {
        "records": np.array([step.record for step in steps], np.int64),
        "offsets": np.array([step.offset for step in steps], np.int64),
        "lengths": np.array([step.length for step in steps], np.int64),
        "states": _stacked([step.state for step in steps]),
        "actions": _stacked([step.action for step in steps]),
    }
    if steps and all(step.timestep is not None for step in steps):
        columns["timesteps"] = np.array([step.timestep for step in steps], np.int64)
    if steps and all(step.timestamp is not None for step in steps):
        columns["timestamps"] = np.array([step.timestamp for step in steps], np.float64)
    return columns


def _stacked(vectors: list[np.ndarray]) -> np.ndarray:
    return np.stack(vectors) if vectors else np.empty((0, len(JOINTS)), np.float32)


def _usual(steps: list[_Step], column: str) -> dict[str, str]:
    """Cameras that more than half of the steps have: a step without one of them is damaged."""
    tables: list[dict[str, str]] = [
        step.images if column == "images" else step.depths for step in steps
    ]
    counts = Counter(item for table in tables for item in table.items())
    usual = {name: key for (name, key), count in counts.items() if 2 * count > len(steps)}
    # The main camera first, whatever the order of the map in the file.
    return dict(sorted(usual.items(), key=lambda item: (item[0] != MAIN_CAMERA, item[0])))


def _without_odd(
    file: str, steps: list[_Step], expected: set[str]
) -> tuple[list[_Step], list[Damage]]:
    """Keep the steps whose vectors have the usual size and that lack no usual image."""
    sizes = Counter((len(step.state), len(step.action)) for step in steps)
    usual = sizes.most_common(1)[0][0] if sizes else (0, 0)
    good, odd = [], []
    for step in steps:
        size = (len(step.state), len(step.action))
        missing = sorted(expected - {*step.images.values(), *step.depths.values()})
        if not len(step.state) and usual[0]:
            cause = f"missing_feature: missing feature {' or '.join(STATE_KEYS)}"
        elif size != usual:
            cause = f"wrong_dim: wrong dimension, state and action of {size}, expected {usual}"
        elif missing:
            cause = f"missing_feature: missing feature {', '.join(missing)}"
        else:
            good.append(step)
            continue
        odd.append(Damage(file, step.record, step.offset, cause))
    return good, odd


def _step(
    file: str, frame: Frame, text_keys: tuple[str, ...], texts_seen: set[str]
) -> _Step | Damage:
    try:
        features = parse(frame.payload)
        texts_seen |= {key for key, feature in features.items() if _is_text(feature)}
        return _checked_step(frame, features, text_keys)
    except ExampleError as error:
        cause = f"bad_example: no tf.train.Example, {error}"
    except _Unusable as error:
        cause = str(error)
    return Damage(file, frame.record, frame.offset, cause)


class _Unusable(Exception):
    """Why a record that parses cannot be used."""


def _is_text(feature: Feature) -> bool:
    """Whether a feature holds words: UTF-8 with a letter, and no control characters."""
    if feature.kind != "bytes" or not len(feature.values) or len(feature.values[0]) > _LONGEST_TEXT:
        return False
    text = decode_instruction(feature.values[0]) or ""
    return text.isprintable() and any(letter.isalpha() for letter in text)


def _checked_step(frame: Frame, features: dict[str, Feature], text_keys: tuple[str, ...]) -> _Step:
    timestep = _first(features, TIMESTEP_KEY, "int64")
    timestamp = _first(features, TIMESTAMP_KEY, "float")
    found = _images(features)
    raw = any(not images.looks_like_image(features[key].values[0]) for key in found.values())
    return _Step(
        frame.record,
        frame.offset,
        len(frame.payload),
        _state(features),
        _vector(features, ACTION_KEYS),
        None if timestep is None else int(timestep),
        None if timestamp is None else float(timestamp),
        found,
        _depths(features),
        _text(features, text_keys),
        _text(features, (NAME_KEY,)),
        frozenset(features),
        raw,
    )


def _first(features: dict[str, Feature], key: str, kind: str) -> Any:
    """A feature's first value, None where it has none of this kind."""
    feature = features.get(key)
    if feature is None or feature.kind != kind or not len(feature.values):
        return None
    return feature.values[0]


def _state(features: dict[str, Feature]) -> np.ndarray:
    """float32 [D]; empty where none was recorded, which a policy without a state does not need."""
    if any(key in features and len(features[key].values) for key in STATE_KEYS):
        return _vector(features, STATE_KEYS)
    return np.empty(0, np.float32)


def _vector(features: dict[str, Feature], keys: tuple[str, ...]) -> np.ndarray:
    for key in keys:
        feature = features.get(key)
        if feature is None or not len(feature.values):
            continue
        if feature.kind == "bytes":
            vector = tensor(feature.values[0]).ravel().astype(np.float32)
        elif feature.kind == "float":
            # Copied: a view would keep the whole record, images and all, in memory.
            vector = np.array(feature.values, np.float32)
        else:
            raise _Unusable(f"missing_feature: {key} holds {feature.kind}, expected float")
        if not np.isfinite(vector).all():
            raise _Unusable(f"non_finite: non-finite value in {key}")
        return vector
    raise _Unusable(f"missing_feature: missing feature {' or '.join(keys)}")


def _text(features: dict[str, Feature], keys: tuple[str, ...]) -> str:
    for key in keys:
        feature = features.get(key)
        if feature is None or feature.kind != "bytes" or not len(feature.values):
            continue
        text = decode_instruction(feature.values[0])
        if text is None:
            raise _Unusable(f"bad_utf8: {key} is not UTF-8")
        if text.strip():
            return text
    return ""


def _images(features: dict[str, Feature]) -> dict[str, str]:
    found = []
    for key, feature in features.items():
        match = _CAMERA.match(key)
        if not match or match["name"] in _NOT_CAMERAS or feature.kind != "bytes":
            continue
        if images.is_depth_name(match["name"] or ""):
            continue
        content = feature.values[0] if len(feature.values) else b""
        if not content:
            continue
        if not images.looks_like_image(content) and _raw_shape(features, key, content) is None:
            raise _Unusable(f"bad_image: image decode error, {key} holds no image")
        found.append(key)
    return images.camera_names(found, _camera_name)


def _camera_name(key: str) -> str:
    match = _CAMERA.match(key)
    return (match["name"] if match else None) or MAIN_CAMERA


def _raw_shape(
    features: dict[str, Feature], key: str, content: bytes
) -> tuple[int, int, int] | None:
    """Height, width and channels of an image stored as its pixels; None where it is none."""
    height = _first(features, f"{key}/height", "int64")
    width = _first(features, f"{key}/width", "int64")
    if height is None or width is None or height < 1 or width < 1:
        return None
    channels, rest = divmod(len(content), int(height * width))
    return (int(height), int(width), channels) if channels in (1, 3, 4) and not rest else None


def _depths(features: dict[str, Feature]) -> dict[str, str]:
    found = {}
    for key, feature in features.items():
        match = _DEPTH.match(key)
        wanted = match and match["name"] not in _NOT_CAMERAS and feature.kind in ("bytes", "float")
        if match and wanted and len(feature.values):
            found[match["name"] or MAIN_CAMERA] = key
    return found


class TFRecordImages:
    """Images of one file, read record by record when asked for."""

    def __init__(self, recording: TFRecordRecording, depth_shape: tuple[int, int] | None) -> None:
        self.recording = recording
        self.depth_shape = depth_shape

    def encoded(self, camera: str, row: int) -> bytes | None:
        content = self._content(camera, self._features(row), row)
        return content if images.looks_like_image(content) else None

    def _content(self, camera: str, features: dict[str, Feature], row: int) -> bytes:
        key = self.recording.cameras[camera]
        found = _first(features, key, "bytes")
        if found is None:
            raise self._damaged(row, f"missing_feature: missing feature {key}")
        return bytes(found)

    def pixels(self, camera: str, row: int) -> np.ndarray:
        features = self._features(row)
        content = self._content(camera, features, row)
        try:
            if not images.looks_like_image(content):
                shape = _raw_shape(features, self.recording.cameras[camera], content)
                if shape is not None:
                    return images.as_rgb(np.frombuffer(content, np.uint8).reshape(shape))
            return images.decode(content)
        except images.ImageError as error:
            cause = f"bad_image: {self.recording.cameras[camera]}: {error}"
            raise self._damaged(row, cause) from error

    def depth(self, camera: str, row: int) -> np.ndarray:
        features = self._features(row)
        key = self.recording.depths[camera]
        if key not in features:
            raise self._damaged(row, f"missing_feature: missing feature {key}")
        values = _raw_floats(features[key])
        for shape in self._depth_shapes(features, key, camera):
            if shape[0] * shape[1] == len(values):
                return values.reshape(shape)
        raise self._damaged(row, f"wrong_dim: wrong dimension, {key} of {len(values)} values")

    def _depth_shapes(
        self, features: dict[str, Feature], key: str, camera: str
    ) -> list[tuple[int, int]]:
        """Shapes to try: stored with the values, the camera's image, the episode's meta.json."""
        shapes = []
        height = _first(features, f"{key}/height", "int64")
        width = _first(features, f"{key}/width", "int64")
        if height is not None and width is not None:
            shapes.append((int(height), int(width)))
        image = _first(features, self.recording.cameras.get(camera, ""), "bytes")
        if image is not None:
            # An image that is broken is damage of its own; depth may still have another shape.
            with suppress(images.ImageError):
                shapes.append(images.shape_of(bytes(image)))
        return [*shapes, self.depth_shape] if self.depth_shape else shapes

    def _features(self, row: int) -> dict[str, Feature]:
        place = self._place(row)
        recording = self.recording
        offset, length = int(recording.offsets[place]), int(recording.lengths[place])
        try:
            return parse(read_at(recording.path, offset, length, row))
        except ExampleError as error:  # the file was written again since it was opened
            raise self._damaged(row, f"bad_example: no tf.train.Example, {error}") from error

    def _place(self, row: int) -> int:
        return int(np.searchsorted(self.recording.records, row))

    def _damaged(self, row: int, cause: str) -> DamagedRecord:
        offset = int(self.recording.offsets[self._place(row)])
        return DamagedRecord(Damage(str(self.recording.path), row, offset, cause))


def _raw_floats(feature: Feature) -> np.ndarray:
    """Depth is written as a list of floats or as the bytes of one array."""
    if isinstance(feature.values, np.ndarray):
        return np.array(feature.values, np.float32)
    raw = feature.values[0]
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<f4").copy()
