"""Folders of CRANE-X7 recordings: TFRecord and NPZ episodes, side by side."""

from collections import Counter
from pathlib import Path
from typing import cast

from workloads.data.robot import crane_x7, npz
from workloads.data.robot.episode import (
    ColorOrder,
    Dataset,
    Episode,
    Options,
    Source,
    instruction_of,
)
from workloads.data.tfrecord import Damage
from workloads.errors import UserError

SUFFIXES = (".tfrecord", ".npz")
# The recorders hand RGB arrays to a BGR encoder, and nothing in the file says so.
TFRECORD_COLOR_ORDER: ColorOrder = "bgr"
NPZ_COLOR_ORDER: ColorOrder = "rgb"
_META_COLOR_ORDERS: dict[str, ColorOrder] = {"rgb": "rgb", "bgr": "bgr", "bgr_swapped": "bgr"}


def find(path: Path) -> list[Path]:
    """Episode files below `path` in plain string order; backups and hidden folders are left out.

    An episode recorded in both forms counts once, as TFRecord.
    """
    if path.is_file():
        return [path]
    found = []
    for file in path.rglob("*"):
        parts = file.relative_to(path).parts
        skipped = any(part.endswith(".bak") or part.startswith(".") for part in parts)
        if file.suffix in SUFFIXES and not skipped and file.is_file():
            found.append(file)
    tfrecords = {file.with_suffix("") for file in found if file.suffix == ".tfrecord"}
    kept = [f for f in found if f.suffix == ".tfrecord" or f.with_suffix("") not in tfrecords]
    return sorted(kept, key=lambda file: file.as_posix())


class Recordings(Dataset):
    """One episode a file; an episode without a usable step keeps its place with length 0."""

    format = "crane_x7"
    fps: float | None = crane_x7.FPS

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.files = find(path)
        cache = options.cache_dir
        self._arrays = npz.Arrays()
        self._meta = [crane_x7.read_meta(file.parent) for file in self.files]
        self._recordings = [
            crane_x7.load(file, cache) if file.suffix == ".tfrecord" else npz.load(file)
            for file in self.files
        ]
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
        if isinstance(recording, crane_x7.Recording):
            shape = meta.get("depth_shape")
            depth_shape = (int(shape[0]), int(shape[1])) if shape else None
            source = crane_x7.TFRecordSource(recording, depth_shape)
            rows, default, timesteps = recording.records, TFRECORD_COLOR_ORDER, recording.timesteps
        else:
            source = npz.NpzSource(recording, self._arrays)
            rows, default, timesteps = recording.rows, NPZ_COLOR_ORDER, None
        file = self.files[number]
        episode = Episode(
            name=_episode_name(self.path, file),
            states=recording.states,
            actions=recording.actions,
            instruction=instruction_of([recording.instruction], self.options),
            cameras=tuple(recording.cameras),
            rows=rows,
            source=source,
            file=str(file),
            color_order=self._color_order(file, meta.get("image_color_order"), default),
            timesteps=timesteps,
            timestamps=recording.timestamps,
            depth_cameras=tuple(recording.depths),
        )
        return episode.take(slice(0, 0)) if self._odd(recording) else episode

    def _color_order(self, file: Path, stated: str | None, default: ColorOrder) -> ColorOrder:
        """What the episode itself says, else the option, else what the recorders do."""
        if stated is None:
            return self.options.color_order or default
        if stated not in _META_COLOR_ORDERS:
            raise UserError(
                f"{file.parent / 'meta.json'}: expected image_color_order of "
                f"{', '.join(_META_COLOR_ORDERS)}, found {stated!r}; mend or remove it"
            )
        return _META_COLOR_ORDERS[stated]

    def _odd(self, recording: crane_x7.Recording | npz.Recording) -> list[Damage]:
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


def _usual_sizes(recordings: list[crane_x7.Recording | npz.Recording]) -> tuple[int, int]:
    counts: Counter[tuple[int, int]] = Counter()
    for recording in recordings:
        counts[recording.states.shape[1], recording.actions.shape[1]] += len(recording.states)
    return counts.most_common(1)[0][0] if counts else (0, 0)


def _name(recordings: list[crane_x7.Recording | npz.Recording]) -> str:
    names = {r.dataset_name for r in recordings if isinstance(r, crane_x7.Recording)} - {""}
    return names.pop() if len(names) == 1 else crane_x7.DATASET_NAME


def _fps(metas: list[dict[str, object]]) -> float:
    stated = {float(cast(float, meta["fps"])) for meta in metas if meta.get("fps")}
    return stated.pop() if len(stated) == 1 else crane_x7.FPS


def _episode_name(root: Path, file: Path) -> str:
    """The episode's folder relative to the data set, or the file's name where it has none."""
    if file == root or file.parent == root:
        return file.parent.name if file.stem == "episode_data" else file.stem
    folder = file.parent.relative_to(root).as_posix()
    return folder if file.stem == "episode_data" else f"{folder}/{file.stem}"
