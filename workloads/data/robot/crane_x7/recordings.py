"""Folders of CRANE-X7 recordings: TFRecord and NPZ episodes, side by side."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from workloads.data.robot import images
from workloads.data.robot.crane_x7 import npz, tfrecords
from workloads.data.robot.crane_x7.meta import read_meta
from workloads.data.robot.episode import Dataset, Episode, ImageReader, usual_sizes
from workloads.data.robot.instructions import instruction_of
from workloads.data.robot.options import ColorOrder, Options
from workloads.data.tfrecord import Damage
from workloads.errors import UserError
from workloads.missing_files import refuse_lost_link

TFRECORD, NPZ = (".tfrecord", ".tfrecords"), (".npz",)
Recording = tfrecords.TFRecordRecording | npz.NpzRecording
# The recorders hand RGB arrays to a BGR encoder, and nothing in the file says so.
TFRECORD_COLOR_ORDER: ColorOrder = "bgr"
NPZ_COLOR_ORDER: ColorOrder = "rgb"


def find(path: Path) -> list[Path]:
    """Episode files below `path` in plain string order; backups and hidden folders are left out.

    Folders that are links are followed. An episode recorded in both forms counts once, as
    TFRecord. A single file is taken where its name ends as an episode's does.
    """
    if path.is_file():
        return [path] if path.suffix in TFRECORD + NPZ else []
    files = [Path(file) for file in sorted(walk(path, TFRECORD + NPZ))]
    recorded = {file.with_suffix("") for file in files if file.suffix in TFRECORD}
    return [f for f in files if f.suffix in TFRECORD or f.with_suffix("") not in recorded]


def walk(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Files below a folder in no order; a folder that several links lead to counts once."""
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [name for name in inner if not _is_left_out(name) and real not in visited]
        for name in names if real not in visited else ():
            file = os.path.join(folder, name)
            if name.endswith(endings) and not _is_left_out(name):
                if os.path.isfile(file):
                    yield file
                elif os.path.islink(file):
                    refuse_lost_link(file)  # an episode whose content is elsewhere
        visited.add(real)


def _refuse(error: OSError) -> None:
    """Raise UserError for an unreadable folder: it may be full of episodes."""
    raise UserError(
        f"expected a readable folder, found {error.filename}: {error.strerror}; check its "
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
        self._recordings = _load(path, files, options)
        self._arrays = npz.Arrays(
            max(len(recording.cameras) + len(recording.depths) for recording in self._recordings)
        )
        self._sizes = usual_sizes(
            (_sizes(recording), len(recording.states)) for recording in self._recordings
        )
        self.name = _name(self._recordings)
        self.fps = self._stated_fps()
        times = [recording.timestamps for recording in self._recordings]
        self.compare_rates(
            "meta.json" if any(meta.fps for meta in self._meta) else "the format",
            [episode for episode in times if episode is not None],
        )
        self._note_contradictions()
        self._describe()
        self._weigh_damage()
        self.report([])

    def __len__(self) -> int:
        return len(self.files)

    def episode(self, number: int) -> Episode:
        recording, meta = self._recordings[number], self._meta[number]
        reader: ImageReader
        if isinstance(recording, tfrecords.TFRecordRecording):
            reader = tfrecords.TFRecordImages(recording, meta.depth_shape)
            # Raw pixels never passed the recorder's BGR encoder.
            default = NPZ_COLOR_ORDER if recording.is_raw else TFRECORD_COLOR_ORDER
            rows, timesteps = recording.records, recording.timesteps
        else:
            reader = npz.NpzImages(recording, self._arrays)
            rows, default, timesteps = recording.rows, NPZ_COLOR_ORDER, None
        episode = Episode(
            name=self._names[number],
            states=recording.states,
            actions=recording.actions,
            said=instruction_of(recording.texts, recording.which, self.options),
            cameras=tuple(recording.cameras),
            rows=rows,
            reader=reader,
            file=str(self.files[number]),
            # First the episode's meta.json, then the option, then the recorders' usual order.
            color_order=meta.color_order or self.options.color_order or default,
            timesteps=timesteps,
            timestamps=recording.timestamps,
            depth_cameras=tuple(recording.depths),
        )
        return episode.take(slice(0, 0)) if self._odd(recording) else episode

    def _note_contradictions(self) -> None:
        """Note what files say of themselves in several ways, or against the options."""
        order = self.options.color_order
        others = {meta.color_order for meta in self._meta} - {None, order}
        if order is not None and others:
            self.note(
                f"color_order is set to {order}, meta.json says "
                f"{' and '.join(sorted(map(str, others)))}: that counts"
            )
        names = _names(self._recordings)
        if len(names) > 1:
            self.note(
                f"the episodes name several datasets, {', '.join(sorted(names))}: {self.name} "
                "stands for all"
            )
        jumps = [
            (name, at)
            for name, recording in zip(self._names, self._recordings, strict=True)
            if isinstance(recording, tfrecords.TFRecordRecording)
            for at in _jumps(recording)[:1]
        ]
        if jumps:
            name, (before, after) = jumps[0]
            self.note(
                f"{len(jumps)} episodes have timesteps that do not count up one by one, the first "
                f"{name}, where {after} comes after {before}: their records are taken as steps "
                "that follow each other"
            )
        both = sum(
            file.suffix in TFRECORD and file.with_suffix(NPZ[0]).is_file() for file in self.files
        )
        if both:
            self.unused["*.npz"] = f"{both} episodes whose TFRecord beside it is read"

    def _stated_fps(self) -> float:
        """The rate that the episodes' meta.json state, else the recorders' usual one."""
        stated = {meta.fps: None for meta in self._meta if meta.fps is not None}
        if len(stated) > 1:
            rates = ", ".join(f"{rate:g}" for rate in stated)
            self.note(
                f"meta.json of the episodes state several rates, {rates} Hz: "
                f"{tfrecords.FPS:g} Hz stands for all"
            )
        return next(iter(stated)) if len(stated) == 1 else tfrecords.FPS

    def _describe(self) -> None:
        """Set joint names of a known robot, keys of texts, and unused features."""
        known = self.name == tfrecords.DATASET_NAME
        states, actions = self._sizes
        self.state_names = tfrecords.JOINTS if known and states == len(tfrecords.JOINTS) else None
        self.action_names = tfrecords.JOINTS if known and actions == len(tfrecords.JOINTS) else None
        there = {key for recording in self._recordings for key in recording.features}
        self.text_keys = tuple(
            sorted({key for recording in self._recordings for key in recording.text_keys})
        )
        used = {*tfrecords.KNOWN_KEYS, *npz.KNOWN_KEYS, self.options.instruction_key}
        used |= {key for recording in self._recordings for key in recording.cameras.values()}
        depths = {key for recording in self._recordings for key in recording.depths.values()}
        belongs = tuple(f"{key}/" for key in used | depths)  # height, width and the like
        for key in sorted(there - used):
            if not key.startswith(belongs):
                is_depth = key in depths or images.is_depth_name(key)
                self.unused[key] = "no colour camera: depth" if is_depth else "a feature"
        for recording in self._recordings:
            if isinstance(recording, npz.NpzRecording):
                self.unused |= recording.unused
        self.unused |= self._empty_folders()
        wanted = self.options.instruction_key
        if wanted is not None and wanted not in there:
            texts = ", ".join(self.text_keys) or "none"
            raise UserError(
                f"{self.path}: expected a feature {wanted!r} of instruction_key, found none; "
                f"features with texts: {texts}"
            )

    def _empty_folders(self) -> dict[str, str]:
        """Report folders with files but without an episode, as an interrupted copy leaves, and
        links to folders that are not there."""
        if not self.path.is_dir():
            return {}
        full = {folder for file in self.files for folder in file.parents}
        lost = {
            link.name: f"a link to {link.readlink()}, which is not there"
            for link in sorted(self.path.iterdir())
            if link.is_symlink() and not link.exists()
        }
        return lost | {
            folder.name: "an episode's folder without an episode file"
            for folder in sorted(self.path.glob("episode_*"))
            if folder.is_dir() and folder not in full and any(folder.iterdir())
        }

    def _weigh_damage(self) -> None:
        """Count an unreadable file as many steps as the others hold on average."""
        lengths = [recording.seen for recording in self._recordings if len(recording.states)]
        usual = int(np.median(lengths)) if lengths else 1
        for recording in self._recordings:
            damage = [*recording.damage, *self._odd(recording)]
            whole = not len(recording.states) and recording.seen == 1
            if whole:
                damage = [item._replace(lost=usual) for item in damage]
            self.damage.extend(damage)
            self.seen += usual if whole else recording.seen

    def _odd(self, recording: Recording) -> list[Damage]:
        """Damage for every step of a file whose vectors differ in size from most steps."""
        sizes = _sizes(recording)
        if len(recording.states) == 0 or sizes == self._sizes:
            return []
        cause = f"wrong_dim: wrong dimension, state and action of {sizes}, expected {self._sizes}"
        file = str(recording.path)
        if isinstance(recording, npz.NpzRecording):
            return [Damage(file, int(row), None, cause) for row in recording.rows]
        places = zip(recording.records, recording.offsets, strict=True)
        return [Damage(file, int(record), int(offset), cause) for record, offset in places]


def _sizes(recording: Recording) -> tuple[int, int]:
    return recording.states.shape[1], recording.actions.shape[1]


def _load(root: Path, files: Sequence[Path], options: Options) -> list[Recording]:
    """Read every file without its images, in the files' order."""
    indexed = [file for file in files if file.suffix in TFRECORD]
    found = tfrecords.load(root, indexed, options.cache_dir, options.instruction_key)
    loaded = {item.path: item for item in found}
    key = options.instruction_key
    return [loaded[file] if file in loaded else npz.load(file, key) for file in files]


def _name(recordings: list[Recording]) -> str:
    names = _names(recordings)
    return names.pop() if len(names) == 1 else tfrecords.DATASET_NAME


def _names(recordings: list[Recording]) -> set[str]:
    """The names of datasets in the files."""
    named = [r for r in recordings if isinstance(r, tfrecords.TFRecordRecording)]
    return {recording.dataset_name for recording in named} - {""}


def _jumps(recording: tfrecords.TFRecordRecording) -> list[tuple[int, int]]:
    """Timesteps of records that follow each other in the file, but not in their numbers."""
    steps, records = recording.timesteps, recording.records
    if steps is None:
        return []
    places = np.flatnonzero(np.diff(steps) != np.diff(records))
    return [(int(steps[at]), int(steps[at + 1])) for at in places]


def _episode_name(root: Path, file: Path) -> str:
    """The episode's folder relative to the dataset, or the file's name where it has none."""
    if file == root or file.parent == root:
        return file.parent.name if file.stem == "episode_data" else file.stem
    folder = file.parent.relative_to(root).as_posix()
    return folder if file.stem == "episode_data" else f"{folder}/{file.stem}"
