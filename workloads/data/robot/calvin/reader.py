"""CALVIN datasets: one file for each frame, and a list of annotated spans."""

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tokenize import TokenError

import numpy as np

from workloads import missing_files
from workloads.data.robot import images
from workloads.data.robot.calvin import annotations
from workloads.data.robot.calvin.annotations import Span
from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.instructions import instruction_of
from workloads.data.robot.options import Options
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

RECORDINGS = "ep_start_end_ids.npy"
_RATE = 30.0  # of the simulator's control, which recorded every step
_STATE, _ACTION = "robot_obs", "rel_actions"
_FRAMES_SEEN = 16  # to learn which arrays frames have
_SIZES = {_STATE: 15, _ACTION: 7}
_CAMERA = "rgb_"
# TypeError: one array in place of an archive; TokenError: an array's header that was cut;
# MemoryError: one that speaks of terabytes.
_BROKEN = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile,
    zlib.error, struct.error, TokenError, MemoryError,
)  # fmt: skip
_UNUSED = {
    "actions": "absolute poses; rel_actions are what is trained on",
    "scene_obs": "poses of the objects, which no policy sees",
    "depth_static": "no colour camera: depth",
    "depth_gripper": "no colour camera: depth",
    "rgb_tactile": "no colour camera: two tactile images side by side",
    "depth_tactile": "no colour camera: depth",
}
_POSE = ("x", "y", "z", "roll", "pitch", "yaw")


def frame_file(frame: int) -> str:
    """The name of a frame's file."""
    return f"episode_{frame:07d}.npz"


class Calvin(Dataset):
    """An episode is an annotated span; spans may overlap.

    Vectors are read with an episode and kept, images when asked for. The published policies take
    the last frame of a span for padding.
    """

    format = "calvin"
    shares_rows = True
    last_step_pads = True

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.name = path.resolve().name
        self.fps = _RATE
        self.action_names = (*(f"delta_{name}" for name in _POSE), "gripper")
        joints = (f"joint_{number}" for number in range(1, 8))
        self.state_names = (*_POSE, "gripper_width", *joints, "gripper")
        self._there = {entry.name for entry in os.scandir(path)}
        self.spans = self._annotated()
        self._vectors: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        wanted = {frame for span in self.spans for frame in range(span.start, span.end + 1)}
        self.seen = len(wanted)
        self._features = self._of_some(wanted)
        used = {*_SIZES, *(_CAMERA + name for name in self.cameras)}
        self.unused = {
            name: _UNUSED.get(name, "nothing reads it")
            for name in self._features
            if name not in used
        }
        self.report(
            Damage(str(path / frame_file(frame)), frame, None, "missing_file: no such file")
            for frame in sorted(wanted)
            if frame_file(frame) not in self._there
        )

    def __len__(self) -> int:
        return len(self.spans)

    def episode(self, number: int) -> Episode:
        span = self.spans[number]
        if number not in self._vectors:
            self._vectors[number] = self._read(span)
        rows, states, actions = self._vectors[number]
        return Episode(
            name=f"{number:05d} {span.task}",
            states=states,
            actions=actions,
            said=instruction_of([span.text], None, self.options),
            cameras=self.cameras,
            rows=rows,
            reader=_Frames(self.path),
            file=str(self.path),
            color_order=self.options.color_order or "rgb",
        )

    def content_files(self) -> set[Path]:
        frames = {frame for span in self.spans for frame in range(span.start, span.end + 1)}
        found = {frame_file(frame) for frame in frames} & self._there
        return {self.path / name for name in found} | {self.path / annotations.FILE}

    def _annotated(self) -> list[Span]:
        file = self.path / annotations.FILE
        if not file.is_file():
            raise UserError(
                f"{self.path}: expected {annotations.FILE}, found none; only annotated spans are "
                "trained on: take the folder from the original dataset"
            )
        spans = annotations.load(file)
        recordings = self._recordings()
        for number, span in enumerate(spans):
            if span.end - span.start >= len(self._there):
                raise UserError(
                    f"{file}: expected spans of frames that are there, found annotation {number} "
                    f"from frame {span.start} to {span.end} in a folder of {len(self._there)} "
                    "files; copy the whole split"
                )
            inside = (recordings[:, 0] <= span.start) & (span.end <= recordings[:, 1])
            if len(recordings) and not inside.any():
                self.note(
                    f"annotation {number}: frames {span.start} to {span.end} are not of one "
                    f"recording of {RECORDINGS}"
                )
        return spans

    def _recordings(self) -> np.ndarray:
        """int64 [n, 2]: first and last frame of each recording; none where the file is missing."""
        file = self.path / RECORDINGS
        if not file.is_file():
            return np.empty((0, 2), np.int64)
        try:
            found = np.load(file, allow_pickle=False)
        except _BROKEN as error:
            raise UserError(
                f"{file}: expected first and last frames, found no array ({error}); take the file "
                "from the original dataset"
            ) from None
        if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":
            raise UserError(
                f"{file}: expected integers [n, 2], found {found.dtype} {list(found.shape)}; take "
                "the file from the original dataset"
            )
        return found.astype(np.int64)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        found = [name for name in self._features if name.startswith(_CAMERA)]
        order = sorted(found, key=lambda name: (name != "rgb_static", name))
        return tuple(name.removeprefix(_CAMERA) for name in order if name not in _UNUSED)

    def _of_some(self, wanted: set[int]) -> list[str]:
        """The arrays of a few frames from all over the split: they are written alike, mostly."""
        frames = sorted(wanted)
        found: dict[str, None] = {}
        read = 0
        for frame in [*frames[:: max(1, len(frames) // _FRAMES_SEEN)], *frames]:
            if read == _FRAMES_SEEN:
                break
            file = self.path / frame_file(frame)
            with suppress(*_BROKEN), np.load(file, allow_pickle=False) as stored:
                found |= dict.fromkeys(stored.files)
                read += 1
        return list(found)

    def _read(self, span: Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the frames that are sound, int64 [T], states [T, 15], actions [T, 7]."""
        rows, states, actions = [], [], []
        lost: list[Damage] = []
        for frame in range(span.start, span.end + 1):
            if frame_file(frame) not in self._there:
                continue  # known since opening
            try:
                arrays = _arrays(self.path, frame, (_STATE, _ACTION))
                state, action = (_vector(self.path, frame, arrays, key) for key in _SIZES)
            except DamagedRecord as error:
                lost.append(error.damage)
                continue
            rows.append(frame)
            states.append(state)
            actions.append(action)
        self.report(lost)
        return (
            np.array(rows, np.int64),
            np.array(states, np.float32).reshape(-1, _SIZES[_STATE]),
            np.array(actions, np.float32).reshape(-1, _SIZES[_ACTION]),
        )


class _Frames:
    """Images of a split; a row is the number of a frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encoded(self, camera: str, row: int) -> bytes | None:
        return None

    def pixels(self, camera: str, row: int) -> np.ndarray:
        key = _CAMERA + camera
        found = _arrays(self.folder, row, (key,))[key]
        is_image = found.ndim == 3 and found.shape[-1] in (1, 3, 4) and found.size
        if found.dtype != np.uint8 or not is_image:
            cause = f"wrong_dim: {key} is {found.dtype} {list(found.shape)}"
            raise _damaged(self.folder, row, cause)
        return images.as_rgb(found)

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.folder}: expected depth of {camera!r}, which is not read here")


def _arrays(folder: Path, frame: int, keys: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """Some arrays of a frame's file; raises DamagedRecord."""
    file = folder / frame_file(frame)
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {key: np.asarray(stored[key]) for key in keys}
    except FileNotFoundError:
        raise _damaged(folder, frame, "missing_file: no such file") from None
    except PermissionError as error:
        raise UserError(f"{file}: expected a file that can be read, found {error}") from None
    except KeyError as error:
        raise _damaged(folder, frame, f"missing_feature: {error.args[0]}") from None
    except _BROKEN as error:
        cause = " ".join(str(error).split())
        if missing_files.is_pointer(file):
            cause = missing_files.WHAT_TO_DO
        raise _damaged(folder, frame, f"bad_file: not a readable NPZ file, {cause}") from None


def _vector(folder: Path, frame: int, arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    found = arrays[key]
    if found.shape != (_SIZES[key],) or found.dtype.kind != "f":
        cause = f"wrong_dim: {key} is {found.dtype} {list(found.shape)}, not float [{_SIZES[key]}]"
        raise _damaged(folder, frame, cause)
    with np.errstate(over="ignore"):
        vector = found.astype(np.float32)
    if not np.isfinite(vector).all():
        raise _damaged(folder, frame, f"non_finite: non-finite value in {key}")
    return vector


def _damaged(folder: Path, frame: int, cause: str) -> DamagedRecord:
    return DamagedRecord(Damage(str(folder / frame_file(frame)), frame, None, cause))
