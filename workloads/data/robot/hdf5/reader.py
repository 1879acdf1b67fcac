"""HDF5 demonstrations, one or several in each file."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workloads import missing_files
from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode, usual_sizes
from workloads.data.robot.hdf5 import layout
from workloads.data.robot.instructions import distinct, instruction_of
from workloads.data.robot.lru import LruCache
from workloads.data.robot.optional import imported
from workloads.data.robot.options import Options
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

_FILES_OPEN = 8
_BROKEN = (OSError, KeyError, ValueError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Demonstration:
    """A demonstration without its images; arrays hold all steps, `sound` the usable ones."""

    file: Path
    group: str
    states: np.ndarray
    actions: np.ndarray
    sound: np.ndarray
    cameras: dict[str, layout.Camera]
    texts: list[str]
    which: np.ndarray | None
    stated: int | None  # steps by its attributes


class Hdf5(Dataset):
    """Vectors are read at opening, images when asked for."""

    format = "hdf5"
    fps: float | None = None

    def __init__(self, path: Path, options: Options, files: Sequence[Path]) -> None:
        super().__init__(path, options)
        self.name = path.resolve().stem if path.is_file() else path.resolve().name
        self.handles = Handles()
        self.found: list[Demonstration] = []
        lost: list[Damage] = []
        self._texts: set[str] = set()
        for file in files:
            lost += self._read(file)
        self._weigh(lost)
        self._compare_with_attributes()
        self.text_keys = tuple(sorted(self._texts))
        self.report([])

    def __len__(self) -> int:
        return len(self.found)

    def episode(self, number: int) -> Episode:
        demonstration = self.found[number]
        place = demonstration.file.stem
        if self.path.is_dir():
            place = demonstration.file.relative_to(self.path).with_suffix("").as_posix()
        name = demonstration.group.removeprefix(f"{layout.DEMONSTRATIONS}/").strip("/")
        episode = Episode(
            name=f"{place}/{name}" if name else place,
            states=demonstration.states,
            actions=demonstration.actions,
            said=instruction_of(demonstration.texts, demonstration.which, self.options),
            cameras=tuple(demonstration.cameras),
            rows=np.arange(len(demonstration.actions)),
            reader=_Images(self, demonstration),
            file=str(demonstration.file),
            color_order=self.options.color_order or "rgb",
        )
        return episode.take(demonstration.sound)

    def _read(self, file: Path) -> list[Damage]:
        """Add the demonstrations of a file and return the damage in it."""
        if missing_files.is_pointer(file):
            return [Damage(str(file), 0, None, f"bad_file: {missing_files.WHAT_TO_DO}")]
        lost = []
        try:
            with opened_file(file) as opened:
                groups = layout.demonstrations(opened)
                rate = layout.control_rate(opened)
                self.fps = self.fps or rate
                if layout.DEMONSTRATIONS in opened and "problem_info" in opened["data"].attrs:
                    self.note(
                        "LIBERO stores its images upside down, and they are shown as they are "
                        "stored; OpenVLA's own training turns them by 180 degrees"
                    )
                if "mask" in opened:
                    named = ", ".join(f"mask/{name}" for name in opened["mask"])
                    self.note(f"{named} list demonstrations of splits: those of all are used")
                self.unused |= dict.fromkeys(layout.no_demonstrations(opened), "no demonstration")
                for name in layout.lost_links(opened):
                    cause = f"missing_file: data/{name} links to what is not there"
                    lost.append(Damage(str(file), len(groups), None, cause))
                for number, group in enumerate(groups):
                    try:
                        self.found.append(self._demonstration(file, opened, group))
                    except _BROKEN as error:
                        text = " ".join(str(error).split())
                        cause = f"missing_feature: {group} cannot be used, {text}"
                        lost.append(Damage(str(file), number, None, cause))
        except _BROKEN as error:
            cause = f"bad_file: not a readable HDF5 file, {' '.join(str(error).split())}"
            return [Damage(str(file), 0, None, cause)]
        return lost

    def _demonstration(self, file: Path, opened: Any, name: str) -> Demonstration:
        group = opened[name]
        found = layout.datasets(group)
        actions = _vectors(found, self._action_keys(found, file))
        keys = self._state_keys(found, file)
        states = _vectors(found, keys) if keys else np.empty((len(actions), 0), np.float32)
        if len(states) != len(actions):
            raise ValueError(f"{len(states)} states and {len(actions)} actions")
        cameras, others = layout.cameras(found)
        for camera in cameras.values():
            if len(found[camera.key]) != len(actions):  # nobody knows which step each is of
                count = len(found[camera.key])
                raise ValueError(f"{count} images of {camera.key} for {len(actions)} actions")
        self.unused |= others
        texts, which = self._instructions(opened, group, found, len(actions), file)
        used = {*keys, *self._action_keys(found, file), *self._texts}
        used |= {camera.key for camera in cameras.values()}
        for key, item in found.items():
            if key not in used and key not in others:
                self.unused.setdefault(key, f"{item.dtype} {list(item.shape[1:])}")
        sound = np.isfinite(states).all(1) & np.isfinite(actions).all(1)
        stated = layout.stated_steps(group)
        return Demonstration(file, name, states, actions, sound, cameras, texts, which, stated)

    def _compare_with_attributes(self) -> None:
        """Note what the files' attributes contradict, or leave open."""
        other = [d for d in self.found if d.stated not in (None, len(d.actions))]
        if other:
            self.note(
                f"{len(other)} demonstrations have another number of steps than their num_samples "
                f"says, and all are used; the first is {other[0].group}: {other[0].stated} said, "
                f"{len(other[0].actions)} found"
            )
        is_encoded = any(camera.encoded for d in self.found for camera in d.cameras.values())
        if is_encoded and self.options.color_order is None:
            self.note(
                "the files do not say the order of colours in their JPEG or PNG images, and "
                "recorders that hand RGB to OpenCV exchange red and blue: look at the images, and "
                "set data.color_order to rgb, or to bgr where they are exchanged"
            )

    def _action_keys(self, found: dict[str, Any], file: Path) -> tuple[str, ...]:
        usual = next(((key,) for key in layout.ACTION_KEYS if key in found), ())
        keys = self.options.action_keys or usual
        if not keys:
            wanted = " or ".join(layout.ACTION_KEYS)
            raise ValueError(f"no {wanted}; name some with action_keys: {_listed(found)}")
        return _known(keys, found, "action_keys", file)

    def _state_keys(self, found: dict[str, Any], file: Path) -> tuple[str, ...]:
        usual = next((k for k in layout.STATE_KEYS if all(key in found for key in k)), ())
        return _known(self.options.state_keys or usual, found, "state_keys", file)

    def _instructions(
        self, opened: Any, group: Any, found: dict[str, Any], steps: int, file: Path
    ) -> tuple[list[str], np.ndarray | None]:
        self._texts |= {key for key, item in found.items() if layout.is_text(item)}
        wanted = self.options.instruction_key
        for name, values in layout.texts(opened, group, found, wanted):
            self._texts.add(name)
            if any(value.strip() for value in values):
                texts, which = distinct(values)
                if len(texts) > 1 and len(values) != steps:
                    raise ValueError(f"{len(values)} texts of {name} for {steps} steps")
                return texts, which if len(values) == steps else None
        if wanted is not None and wanted not in self._texts:
            raise UserError(
                f"{file}: expected a text {wanted!r} of instruction_key, found none; there are: "
                f"{', '.join(sorted(self._texts)) or 'none'}"
            )
        return [], None

    def _weigh(self, lost: list[Damage]) -> None:
        """Count a lost demonstration as many steps as the others have on average."""
        lengths = [len(demonstration.actions) for demonstration in self.found]
        usual = int(np.median(lengths)) if lengths else 1
        self.damage += [item._replace(lost=max(usual, 1)) for item in lost]
        self.seen = sum(lengths) + max(usual, 1) * len(lost)
        sizes = [(element.states.shape[1], element.actions.shape[1]) for element in self.found]
        expected = usual_sizes(zip(sizes, lengths, strict=True))
        for number, size in enumerate(sizes):
            found = self.found[number]
            if size != expected:
                cause = f"wrong_dim: {found.group} has states and actions of {size}, not {expected}"
                self.damage.append(Damage(str(found.file), number, None, cause, len(found.actions)))
            self.damage += [
                Damage(str(found.file), int(row), None, f"non_finite: in {found.group}")
                for row in np.flatnonzero(~found.sound)
            ]
        self.found = [
            found for found, size in zip(self.found, sizes, strict=True) if size == expected
        ]


def _known(
    keys: tuple[str, ...], found: dict[str, Any], option: str, file: Path
) -> tuple[str, ...]:
    for key in keys:
        if key not in found:
            raise UserError(
                f"{file}: expected vectors for {option}, found no {key!r}; name some of: "
                f"{_listed(found)}"
            )
    return keys


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(found) or "none"


def _vectors(found: dict[str, Any], keys: tuple[str, ...]) -> np.ndarray:
    """float32 [T, D]: the datasets side by side."""
    for key in keys:
        if found[key].ndim == 0:
            raise ValueError(f"{key} holds one value, not one a step")
    blocks = [np.asarray(found[key][()], np.float32) for key in keys]
    flat = [block.reshape(len(block), math.prod(block.shape[1:])) for block in blocks]
    return np.concatenate(flat, axis=1)


class Handles:
    """LRU cache of open files; every process opens its own."""

    def __init__(self) -> None:
        self._open: LruCache[Path, Any] = LruCache(_FILES_OPEN, _close)
        self._process = os.getpid()

    def get(self, file: Path) -> Any:
        if self._process != os.getpid():  # a forked worker must not share file positions
            self._open, self._process = LruCache(_FILES_OPEN, _close), os.getpid()
        return self._open.get(file, lambda: opened_file(file))


def opened_file(file: Path) -> Any:
    """An h5py file, to read."""
    return imported("h5py", "hdf5", str(file)).File(file, "r")


def _close(file: Any) -> None:
    file.close()


class _Images:
    """Images of one demonstration."""

    def __init__(self, dataset: Hdf5, demonstration: Demonstration) -> None:
        self.dataset = dataset
        self.demonstration = demonstration

    def encoded(self, camera: str, row: int) -> bytes | None:
        place = self.demonstration.cameras[camera]
        if not place.encoded:
            return None
        # Padded to one length with zeros, which no JPEG or PNG ends with.
        return layout.content(self._row(camera, row)).rstrip(b"\0")

    def pixels(self, camera: str, row: int) -> np.ndarray:
        encoded = self.encoded(camera, row)
        if encoded is None:
            return images.as_rgb(np.asarray(self._row(camera, row)))
        try:
            return images.decode(encoded)
        except images.ImageError as error:
            raise self._damaged(camera, row, f"bad_image: {error}") from error

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.demonstration.file}: expected depth of {camera!r}, found none")

    def _row(self, camera: str, row: int) -> Any:
        demonstration = self.demonstration
        try:
            opened = self.dataset.handles.get(demonstration.file)
            return opened[demonstration.group][demonstration.cameras[camera].key][row]
        except (*_BROKEN, IndexError) as error:
            cause = f"missing_feature: {' '.join(str(error).split())}"
            raise self._damaged(camera, row, cause) from error

    def _damaged(self, camera: str, row: int, cause: str) -> DamagedRecord:
        place = f"{cause} ({camera} of {self.demonstration.group})"
        return DamagedRecord(Damage(str(self.demonstration.file), row, None, place))
