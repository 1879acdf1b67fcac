"""CRANE-X7 recordings as NPZ: one file an episode, one array a quantity."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads import missing_files
from workloads.data.robot import images
from workloads.data.robot.instructions import distinct
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
IMAGE_PREFIXES = ("images", "image", "observation/image")
DEPTH_PREFIXES = ("depths", "depth", "observation/depth")
KNOWN_KEYS = (*STATE_KEYS, *ACTION_KEYS, *TIMESTAMP_KEYS, *INSTRUCTION_KEYS)
MAIN_CAMERA = "primary"
_CHANNELS = ((), (1,), (3,), (4,))

# A decompressed array is a whole episode of one camera: hundreds of megabytes at 640x480.
_ARRAYS_KEPT = 2
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class NpzRecording:
    """The vectors of a file and which cameras it holds; `rows` are the steps that are sound.

    texts: the distinct instructions, which int32 [T]: the one of each step, None for all alike.
    """

    path: Path
    rows: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray | None
    cameras: dict[str, str]
    depths: dict[str, str]
    texts: list[str]
    which: np.ndarray | None
    features: list[str]
    text_keys: list[str]
    seen: int
    damage: tuple[Damage, ...]
    unused: dict[str, str]  # arrays of other images and objects, and why they are not used


class _Unusable(Exception):
    """Why the file as a whole cannot be used."""


def load(path: Path, text_key: str | None = None) -> NpzRecording:
    """Read everything but the images; text_key: the array of instructions, by default as usual."""
    if path.stat().st_size == 0:
        return _nothing(path, "empty: empty file")
    if missing_files.is_pointer(path):
        return _nothing(path, f"bad_file: {missing_files.WHAT_TO_DO}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return _recording(path, stored, (text_key,) if text_key else INSTRUCTION_KEYS)
    except _Unusable as error:
        return _nothing(path, str(error))
    except _BROKEN as error:
        return _nothing(path, f"bad_file: not a readable NPZ file, {error}")


def _nothing(path: Path, cause: str) -> NpzRecording:
    empty = np.empty((0, 0), np.float32)
    damage = (Damage(str(path), 0, 0, cause),)
    rows = np.empty(0, np.int64)
    return NpzRecording(path, rows, empty, empty, None, {}, {}, [], None, [], [], 1, damage, {})


def _recording(
    path: Path, stored: np.lib.npyio.NpzFile, text_keys: tuple[str, ...]
) -> NpzRecording:
    actions = _vectors(stored, ACTION_KEYS)
    # Policies without a state need none.
    recorded = any(key in stored.files for key in STATE_KEYS)
    empty = np.empty((len(actions), 0), np.float32)
    states = _vectors(stored, STATE_KEYS) if recorded else empty
    if len(states) != len(actions):
        raise _Unusable(f"wrong_dim: {len(states)} states and {len(actions)} actions")
    cameras, unused = _colour(stored, _cameras(stored, IMAGE_PREFIXES), len(actions))
    pickled = [key for key in stored.files if _header(stored, key)[1].kind == "O"]
    unused |= dict.fromkeys(pickled, "pickled objects, which are never loaded")
    depths = _cameras(stored, DEPTH_PREFIXES)
    bad = ~(np.isfinite(states).all(1) & np.isfinite(actions).all(1))
    damage = tuple(
        Damage(str(path), int(row), None, "non_finite: non-finite value in states or actions")
        for row in np.flatnonzero(bad)
    )
    times = _times(stored, len(states))
    texts, which = _texts(stored, text_keys, len(states))
    return NpzRecording(
        path,
        np.flatnonzero(~bad),
        states[~bad],
        actions[~bad],
        None if times is None else times[~bad],
        cameras,
        depths,
        texts,
        None if which is None else which[~bad],
        list(stored.files),
        [key for key in stored.files if _header(stored, key)[1].kind in "US"],
        len(states),
        damage,
        unused,
    )


def _colour(
    stored: np.lib.npyio.NpzFile, found: dict[str, str], steps: int
) -> tuple[dict[str, str], dict[str, str]]:
    """The arrays that hold colour images, and the others with the reason why they do not.

    Raises _Unusable where there is not one image for each step: nobody knows which step each is of.
    """
    colour, other = {}, {}
    for camera, key in found.items():
        shape, dtype = _header(stored, key)
        if images.is_depth_name(key):
            other[key] = "no colour camera: depth, by its name"
        elif dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in _CHANNELS:
            other[key] = f"no colour camera: {dtype} {list(shape[1:])}"
        elif shape[0] != steps:
            raise _Unusable(f"wrong_dim: {shape[0]} images of {key} for {steps} steps")
        else:
            colour[camera] = key
    return colour, other


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
    short = {
        key: key[len(prefix) + 1 :] or MAIN_CAMERA
        for key in stored.files
        for prefix in prefixes
        if key == prefix or key.startswith(f"{prefix}_")
    }
    found = images.camera_names(short, short.__getitem__)
    return dict(sorted(found.items(), key=lambda item: (item[0] != MAIN_CAMERA, item[0])))


def _header(stored: np.lib.npyio.NpzFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, by its header alone: images are large."""
    with stored.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        shape, _, dtype = read(file) if read else np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _texts(
    stored: np.lib.npyio.NpzFile, keys: tuple[str, ...], steps: int
) -> tuple[list[str], np.ndarray | None]:
    """The distinct instructions, and which each step has; None where one stands for all."""
    for key in keys:
        if key not in stored.files:
            continue
        try:
            values = stored[key].ravel()
        except ValueError:  # pickled objects: never loaded
            continue
        try:
            words = [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]
        except UnicodeDecodeError:
            raise _Unusable(f"bad_utf8: {key} is not UTF-8") from None
        if any(word.strip() for word in words):
            texts, which = distinct(words)
            if len(texts) > 1 and len(words) != steps:
                raise _Unusable(f"wrong_dim: {len(words)} texts of {key} for {steps} steps")
            return texts, which if len(words) == steps else None
    return [], None


class Arrays:
    """The image arrays last used, over all files of a dataset."""

    def __init__(self, cameras: int) -> None:
        # A step looks through every camera: with fewer, each image would cost a whole array.
        self._cache: LruCache[tuple[Path, str], np.ndarray] = LruCache(max(_ARRAYS_KEPT, cameras))

    def get(self, path: Path, key: str) -> np.ndarray:
        """The array stored under `key`, [T, ...] of the recorder's type.

        Raises what numpy and zipfile raise on broken files.
        """
        return self._cache.get((path, key), lambda: _load_array(path, key))


def _load_array(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored[key])


class NpzImages:
    """Images of one file."""

    def __init__(self, recording: NpzRecording, arrays: Arrays) -> None:
        self.recording = recording
        self.arrays = arrays

    def encoded(self, camera: str, row: int) -> bytes | None:
        return None

    def pixels(self, camera: str, row: int) -> np.ndarray:
        frame = self._frame(self.recording.cameras[camera], row)
        shaped = frame[..., None] if frame.ndim == 2 else frame
        if frame.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[-1] not in (1, 3, 4):
            cause = f"wrong_dim: image of shape {frame.shape} and type {frame.dtype}"
            raise self._damaged(row, cause)
        return images.as_rgb(shaped)

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
