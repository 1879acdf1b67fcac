"""Folders of CRANE-X7 recordings: TFRecord and NPZ episodes, side by side."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from workloads.data.robot.crane_x7 import tfrecords
from workloads.data.robot.crane_x7 import npz
from workloads.data.robot.episode import (
    ColorOrder,
    Dataset,
    Episode,
    Options,
    Source,
    instruction_of,
)
from workloads.data.robot.crane_x7.meta import Meta, read_meta
from workloads.data.tfrecord import Damage
from workloads.errors import UserError

TFRECORD, NPZ = ".tfrecord", ".npz"
# The recorders hand RGB arrays to a BGR encoder, and nothing in the file says so.
TFRECORD_COLOR_ORDER: ColorOrder = "bgr"
NPZ_COLOR_ORDER: ColorOrder = "rgb"


def find(path: Path) -> list[Path]:
    """Episode files below `path` in plain string order; backups and hidden folders are left out.

    Folders that are links are followed. An episode recorded in both forms counts once, as
    TFRecord. A single file is taken where its name ends as an episode's does.
    """
    if path.is_file():
        return [path] if path.suffix in (TFRECORD, NPZ) else []
    files = sorted(_files(path))
    stems = {file.removesuffix(TFRECORD) for file in files if file.endswith(TFRECORD)}
    kept = [file for file in files if file.endswith(TFRECORD) or file[: -len(NPZ)] not in stems]
    return [Path(file) for file in kept]


def _files(root: Path) -> Iterator[str]:
    """Episode files in no order; a folder that several links lead to counts once."""
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [name for name in inner if not _is_left_out(name) and real not in visited]
        for name in names if real not in visited else ():
            file = os.path.join(folder, name)
            if name.endswith((TFRECORD, NPZ)) and not _is_left_out(name) and os.path.isfile(file):
                yield file
        visited.add(real)


def _refuse(error: OSError) -> None:
    """A folder that cannot be looked into may be full of episodes."""
    raise UserError(
        f"expected a folder to look into, found {error.filename}: {error.strerror}; check its "
        "permissions"
    ) from error


def _is_left_out(name: str) -> bool:
    return name.endswith(".bak") or name.startswith(".") or name == "lost+found"


class Recordings(Dataset):
    """One episode a file; an episode without a usable step keeps its place with length 0."""

    format = "crane_x7"
    fps: float | None = tfrecords.FPS

    def __init__(self, path: Path, options: Options, files: Sequence[Path]) -> None:
        """files: what `find` has found."""
        super().__init__(path, options)
        self.files = files
        self._names = [_episode_name(path, file) for file in files]
        self._meta = [read_meta(file.parent) for file in files]
        self._recordings = _load(path, files, options.cache_dir)
        self._arrays = npz.Arrays(
            max(len(one.cameras) + len(one.depths) for one in self._recordings)
        )
        self._sizes = _usual_sizes(self._recordings)
        self.name = _name(self._recordings)
        self.fps = _fps(self._meta)
        seen = sum(recording.seen for recording in self._recordings)
        for recording in self._recordings:
            self.damage.extend([*recording.damage, *self._odd(recording)])
        self.report([], seen)

    def __len__(self) -> int:
        return len(self.files)

    def episode(self, number: int) -> Episode:
        recording, meta = self._recordings[number], self._meta[number]
        source: Source
        if isinstance(recording, tfrecords.Recording):
            source = tfrecords.TFRecordSource(recording, meta.depth_shape)
            rows, default, timesteps = recording.records, TFRECORD_COLOR_ORDER, recording.timesteps
        else:
            source = npz.NpzSource(recording, self._arrays)
            rows, default, timesteps = recording.rows, NPZ_COLOR_ORDER, None
        episode = Episode(
            name=self._names[number],
            states=recording.states,
            actions=recording.actions,
            instruction=instruction_of([recording.instruction], self.options),
            cameras=tuple(recording.cameras),
            rows=rows,
            source=source,
            file=str(self.files[number]),
            # What the episode itself says, else the option, else what the recorders do.
            color_order=meta.color_order or self.options.color_order or default,
            timesteps=timesteps,
            timestamps=recording.timestamps,
            depth_cameras=tuple(recording.depths),
        )
        return episode.take(slice(0, 0)) if self._odd(recording) else episode

    def _odd(self, recording: tfrecords.Recording | npz.Recording) -> list[Damage]:
        """Every step of a file whose vectors have not the size that most steps have."""
        sizes = (recording.states.shape[1], recording.actions.shape[1])
        if len(recording.states) == 0 or sizes == self._sizes:
            return []
        cause = f"wrong_dim: wrong dimension, state and action of {sizes}, expected {self._sizes}"
        file = str(recording.path)
        if isinstance(recording, npz.Recording):
            return [Damage(file, int(row), None, cause) for row in recording.rows]
        places = zip(recording.records, recording.offsets, strict=True)
        return [Damage(file, int(record), int(offset), cause) for record, offset in places]


def _load(
    root: Path, files: Sequence[Path], cache_dir: Path | None
) -> list[tfrecords.Recording | npz.Recording]:
    """What is known of every file without its pictures, in the files' order."""
    indexed = [file for file in files if file.suffix == TFRECORD]
    loaded = {one.path: one for one in tfrecords.load(root, indexed, cache_dir)}
    return [loaded[file] if file in loaded else npz.load(file) for file in files]


def _usual_sizes(recordings: list[tfrecords.Recording | npz.Recording]) -> tuple[int, int]:
    counts: Counter[tuple[int, int]] = Counter()
    for recording in recordings:
        counts[recording.states.shape[1], recording.actions.shape[1]] += len(recording.states)
    return counts.most_common(1)[0][0] if counts else (0, 0)


def _name(recordings: list[tfrecords.Recording | npz.Recording]) -> str:
    names = {r.dataset_name for r in recordings if isinstance(r, tfrecords.Recording)} - {""}
    return names.pop() if len(names) == 1 else tfrecords.DATASET_NAME


def _fps(metas: list[Meta]) -> float:
    stated = {meta.fps for meta in metas if meta.fps is not None}
    return stated.pop() if len(stated) == 1 else tfrecords.FPS


def _episode_name(root: Path, file: Path) -> str:
    """The episode's folder relative to the data set, or the file's name where it has none."""
    if file == root or file.parent == root:
        return file.parent.name if file.stem == "episode_data" else file.stem
    folder = file.parent.relative_to(root).as_posix()
    return folder if file.stem == "episode_data" else f"{folder}/{file.stem}"
