"""CRANE-X7 recordings as NPZ: one file an episode, one array a quantity."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.data.robot.lru import LruCache
from workloads.data.tfrecord import Damage, DamagedRecord

STATE_KEYS = ("states", "state", "observation/proprio", "observation/state", "proprio")
ACTION_KEYS = ("actions", "action")
TIMESTAMP_KEYS = ("timestamps", "timestamp", "observation/timestamp")
INSTRUCTION_KEYS = (
    "task/language_instruction",
    "language_instruction",
    "instruction",
    "prompt",
)
PICTURE_PREFIXES = ("images", "image", "observation/image")
DEPTH_PREFIXES = ("depths", "depth", "observation/depth")
MAIN_CAMERA = "primary"

# A decompressed array is a whole episode of one camera: hundreds of megabytes at 640x480.
_ARRAYS_KEPT = 2
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Recording:
    """The vectors of a file and which cameras it holds; `rows` are the steps that are sound."""

    path: Path
    rows: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray | None
    cameras: dict[str, str]
    depths: dict[str, str]
    instruction: str
    seen: int
    damage: tuple[Damage, ...]


class _Unusable(Exception):
    """Why the file as a whole cannot be used."""


def load(path: Path) -> Recording:
    """Read everything but the pictures."""
    if path.stat().st_size == 0:
        return _nothing(path, "empty: empty file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return _recording(path, stored)
    except _Unusable as error:
        return _nothing(path, str(error))
    except _BROKEN as error:
        return _nothing(path, f"bad_file: not a readable NPZ file, {error}")


def _nothing(path: Path, cause: str) -> Recording:
    empty = np.empty((0, 0), np.float32)
    damage = (Damage(str(path), 0, 0, cause),)
    return Recording(path, np.empty(0, np.int64), empty, empty, None, {}, {}, "", 1, damage)


def _recording(path: Path, stored: np.lib.npyio.NpzFile) -> Recording:
    states, actions = _vectors(stored, STATE_KEYS), _vectors(stored, ACTION_KEYS)
    if len(states) != len(actions):
        raise _Unusable(f"wrong_dim: {len(states)} states and {len(actions)} actions")
    cameras, depths = _cameras(stored, PICTURE_PREFIXES), _cameras(stored, DEPTH_PREFIXES)
    bad = ~(np.isfinite(states).all(1) & np.isfinite(actions).all(1))
    damage = tuple(
        Damage(str(path), int(row), None, "non_finite: non-finite value in states or actions")
        for row in np.flatnonzero(bad)
    )
    times = _times(stored, len(states))
    return Recording(
        path,
        np.flatnonzero(~bad),
        states[~bad],
        actions[~bad],
        None if times is None else times[~bad],
        cameras,
        depths,
        _instruction(stored),
        len(states),
        damage,
    )


def _first(stored: np.lib.npyio.NpzFile, keys: tuple[str, ...]) -> np.ndarray | None:
    return next((stored[key] for key in keys if key in stored.files), None)


def _vectors(stored: np.lib.npyio.NpzFile, keys: tuple[str, ...]) -> np.ndarray:
    found = _first(stored, keys)
    if found is None:
        there = ", ".join(stored.files)
        raise _Unusable(f"missing_feature: missing feature {' or '.join(keys[:2])}, found {there}")
    if found.ndim != 2 or found.dtype.kind != "f":
        raise _Unusable(f"wrong_dim: {keys[0]} of shape {found.shape} and type {found.dtype}")
    return found.astype(np.float32)


def _times(stored: np.lib.npyio.NpzFile, steps: int) -> np.ndarray | None:
    """float64 [steps], None where the file has no number for each step."""
    found = _first(stored, TIMESTAMP_KEYS)
    if found is None or found.dtype.kind not in "fiu" or found.shape not in ((steps,), (steps, 1)):
        return None
    return found.astype(np.float64).reshape(steps)


def _cameras(stored: np.lib.npyio.NpzFile, prefixes: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in stored.files:
        for prefix in prefixes:
            if key == prefix:
                found.setdefault(MAIN_CAMERA, key)
            elif key.startswith(f"{prefix}_"):
                found.setdefault(key[len(prefix) + 1 :], key)
    return dict(sorted(found.items(), key=lambda item: (item[0] != MAIN_CAMERA, item[0])))


def _instruction(stored: np.lib.npyio.NpzFile) -> str:
    for key in INSTRUCTION_KEYS:
        if key not in stored.files:
            continue
        try:
            words = stored[key].ravel()
        except ValueError:  # pickled objects: never loaded
            continue
        for word in words[:1]:
            return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
    return ""


class Arrays:
    """The picture arrays last used, over all files of a data set."""

    def __init__(self, cameras: int) -> None:
        # A step looks through every camera: with fewer, each picture would cost a whole array.
        self._cache: LruCache[tuple[Path, str], np.ndarray] = LruCache(max(_ARRAYS_KEPT, cameras))

    def get(self, path: Path, key: str) -> np.ndarray:
        """The array stored under `key`; raises what numpy and zipfile raise on broken files."""
        return self._cache.get((path, key), lambda: _load_array(path, key))


def _load_array(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored[key])


class NpzSource:
    """Pictures of one file."""

    def __init__(self, recording: Recording, arrays: Arrays) -> None:
        self.recording = recording
        self.arrays = arrays

    def encoded(self, camera: str, row: int) -> bytes | None:
        return None

    def pixels(self, camera: str, row: int) -> np.ndarray:
        frame = self._frame(self.recording.cameras[camera], row)
        shaped = frame[..., None] if frame.ndim == 2 else frame
        if frame.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[-1] not in (1, 3, 4):
            cause = f"wrong_dim: picture of shape {frame.shape} and type {frame.dtype}"
            raise self._damaged(row, cause)
        # Grey ones become RGB and transparency is left out, as in pictures that are encoded.
        return np.repeat(shaped, 3, 2) if shaped.shape[-1] == 1 else shaped[..., :3].copy()

    def depth(self, camera: str, row: int) -> np.ndarray:
        frame = self._frame(self.recording.depths[camera], row)
        flat = frame[..., 0] if frame.ndim == 3 and frame.shape[-1] == 1 else frame
        if flat.ndim != 2:
            raise self._damaged(row, f"wrong_dim: depth of shape {frame.shape}")
        return flat.astype(np.float32)

    def _frame(self, key: str, row: int) -> np.ndarray:
        try:
            array = self.arrays.get(self.recording.path, key)
        except _BROKEN as error:
            raise self._damaged(row, f"bad_file: {key} cannot be read, {error}") from error
        if array.ndim == 0 or row >= len(array):
            raise self._damaged(row, f"missing_feature: {key} of shape {array.shape}")
        return np.asarray(array[row])

    def _damaged(self, row: int, cause: str) -> DamagedRecord:
        return DamagedRecord(Damage(str(self.recording.path), row, None, cause))
