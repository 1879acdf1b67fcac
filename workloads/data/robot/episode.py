"""Episodes and datasets, with one interface for all file formats.

An episode with damaged records keeps all its good ones: the action of a step is stored with the
step, so its neighbours stay sound. `rows` then jumps, and `segments` are the runs without a jump;
whatever reads several consecutive steps (action chunks) must stay within one.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast, overload

import numpy as np
from PIL import Image

from workloads.data.robot import images
from workloads.data.robot.instructions import Instruction, Origin
from workloads.data.robot.options import ColorOrder, Options
from workloads.data.robot.transform import renamed, transformed
from workloads.data.tfrecord import Damage, DamagedRecord, check_budget
from workloads.errors import UserError

Progress = Callable[[int, int], None]
_SAME_RATE = 0.02  # relative difference allowed between a measured rate and the stated one


class ImageReader(Protocol):
    """Where the images of an episode come from; `row` is the step's number in the file."""

    def encoded(self, camera: str, row: int) -> bytes | None:
        """The image as stored, None where it is not stored as an image of its own."""

    def pixels(self, camera: str, row: int) -> np.ndarray:
        """uint8 [H, W, 3] in the stored order of colours; raises DamagedRecord."""

    def depth(self, camera: str, row: int) -> np.ndarray:
        """float32 [H, W] in the recorder's unit; raises DamagedRecord."""


class NoImages:
    """Placeholder for the images of an episode that was sent to another process without them."""

    def encoded(self, camera: str, row: int) -> bytes | None:
        raise LookupError(f"{camera}: the images were left behind")

    def pixels(self, camera: str, row: int) -> np.ndarray:
        raise LookupError(f"{camera}: the images were left behind")

    depth = pixels


@dataclass(frozen=True)
class Episode:
    """One demonstration: T steps of states, actions and images.

    states float32 [T, D], D = 0 where none were recorded; actions float32 [T, A], both in the
    recorder's units (CRANE-X7: rad); rows int64 [T], the step's number in the file; timestamps
    float64 [T] in seconds or None.
    """

    name: str
    states: np.ndarray
    actions: np.ndarray
    said: Instruction
    cameras: tuple[str, ...]
    rows: np.ndarray
    reader: ImageReader
    file: str
    color_order: ColorOrder = "rgb"
    timesteps: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    depth_cameras: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def instruction(self) -> str:
        """The instruction of the first step, nearly always that of all steps."""
        return self.said.text

    @property
    def instructions(self) -> tuple[str, ...]:
        """The distinct instructions of its steps, in order of appearance."""
        return tuple(dict.fromkeys(self.said.steps or (self.said.text,)))

    def instruction_at(self, t: int) -> str:
        """The instruction at step t."""
        return self.said.text if self.said.steps is None else self.said.steps[t]

    def image(self, camera: str, t: int) -> np.ndarray:
        """The camera's image at step t, uint8 [H, W, 3], true red, green, blue."""
        pixels = self.reader.pixels(self._known(camera, self.cameras), self._row(t))
        return np.ascontiguousarray(pixels[..., ::-1]) if self.color_order == "bgr" else pixels

    def pillow(self, camera: str, t: int) -> Image.Image:
        """The camera's image at step t as a Pillow image, to be resized.

        An image that is stored encoded is decoded by Pillow alone and never becomes an array on the
        way.
        """
        encoded = self.encoded(camera, t)
        if encoded is not None:
            with suppress(images.ImageError):  # for a broken image, `image` reports the place
                found = images.decode_image(encoded)
                is_bgr = self.color_order == "bgr"
                return Image.merge("RGB", found.split()[::-1]) if is_bgr else found
        return Image.fromarray(self.image(camera, t))

    def encoded(self, camera: str, t: int) -> bytes | None:
        """The image as stored, before any exchange of red and blue; None where there is none."""
        return self.reader.encoded(self._known(camera, self.cameras), self._row(t))

    def depth(self, camera: str, t: int) -> np.ndarray:
        """The camera's depth image at step t, float32 [H, W], CRANE-X7: mm, 0 = no return."""
        return self.reader.depth(self._known(camera, self.depth_cameras), self._row(t))

    @property
    def segments(self) -> list[slice]:
        """Runs of steps that followed each other when they were recorded."""
        if len(self) == 0:
            return []
        starts = [0, *(np.flatnonzero(np.diff(self.rows) != 1) + 1).tolist()]
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(self)], strict=True)]

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """(step before which something is missing, number of records missing there)."""
        jumps = np.flatnonzero(np.diff(self.rows) != 1)
        return [(int(at) + 1, int(self.rows[at + 1] - self.rows[at]) - 1) for at in jumps]

    def take(self, steps: slice | np.ndarray) -> "Episode":
        """The same episode with only some of its steps: a slice, or bool [T]."""
        said = self.said
        if said.steps is not None and len(self.rows[steps]):
            kept = [said.steps[t] for t in np.arange(len(self))[steps].tolist()]
            said = said._replace(text=kept[0], steps=tuple(kept) if len(set(kept)) > 1 else None)
        return replace(
            self,
            said=said,
            states=self.states[steps],
            actions=self.actions[steps],
            rows=self.rows[steps],
            timesteps=None if self.timesteps is None else self.timesteps[steps],
            timestamps=None if self.timestamps is None else self.timestamps[steps],
        )

    def without_placeholder(self) -> "Episode":
        """The episode without a last step whose action is its own state: it teaches to stand still.

        Where the last step recorded is damaged, the one before it has a real action and stays.
        Where actions are the states at every step, the last one is like the others and stays too.
        """
        if not len(self) or not np.array_equal(self.actions[-1], self.states[-1]):
            return self
        if len(self) > 1 and np.array_equal(self.actions, self.states):
            return self
        return self.take(slice(0, len(self) - 1))

    def without_reader(self) -> "Episode":
        """The same episode without its images: an image reader references the whole dataset."""
        return replace(self, reader=NoImages())

    def verify(self) -> Iterator[Damage]:
        """Read every image of every step and yield what cannot be read."""
        for row in self.rows:
            for camera in self.cameras:
                yield from _damage_of(self.reader.pixels, camera, int(row))
            for camera in self.depth_cameras:
                yield from _damage_of(self.reader.depth, camera, int(row))

    def _row(self, t: int) -> int:
        if not -len(self) <= t < len(self):
            raise IndexError(f"step {t} of {self.name}, which has {len(self)} steps")
        return int(self.rows[t])

    def _known(self, camera: str, cameras: tuple[str, ...]) -> str:
        if camera not in cameras:
            there = ", ".join(cameras) or "none"
            raise UserError(
                f"{self.file}: expected one of the cameras {there}, found {camera!r}; "
                "choose one of those"
            )
        return camera


class _Read(Protocol):
    def __call__(self, camera: str, row: int) -> np.ndarray: ...


def _damage_of(read: _Read, camera: str, row: int) -> Iterator[Damage]:
    try:
        read(camera, row)
    except DamagedRecord as error:
        yield error.damage


class Dataset(Sequence[Episode], ABC):
    """Episodes in a fixed order, read on access.

    format: the files' format; name: the dataset's entry in the statistics; fps: steps a second as
    the files or the format state them, measured_fps: by the timestamps, where they can be trusted;
    revision: the commit of one from the hub; seen: all steps, lost ones too;
    damage: what was found wrong so far; notes: remarks to read before training on it;
    unused: features in the files that nothing reads, and why; text_keys: features that hold texts;
    action_names, state_names: one for each dimension, None where the files have none; shares_rows:
    rows number the steps of all episodes, which may overlap, not those of each; last_step_pads:
    the last step of an episode only fills up what windows lack at its end.
    """

    format: str
    name: str
    fps: float | None
    measured_fps: float | None = None
    revision: str | None = None
    seen: int = 0
    action_names: tuple[str, ...] | None = None
    state_names: tuple[str, ...] | None = None
    text_keys: tuple[str, ...] = ()
    shares_rows: bool = False
    last_step_pads: bool = False

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self.damage: list[Damage] = []
        self.notes: list[str] = []
        self.unused: dict[str, str] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def episode(self, number: int) -> Episode:
        """The episode as recorded, with all valid steps, the placeholder included.

        Options that change episodes apply to `dataset[n]`, not here.
        """

    @overload
    def __getitem__(self, item: int) -> Episode: ...
    @overload
    def __getitem__(self, item: slice) -> list[Episode]: ...
    def __getitem__(self, item: int | slice) -> Episode | list[Episode]:
        if isinstance(item, slice):
            return [self[number] for number in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"episode {item} of {self.path}, which has {len(self)} episodes")
        episode, options = self.episode(item % len(self)), self.options
        if options.drop_last_placeholder:
            episode = episode.without_placeholder()
        if options.camera_names:
            episode = renamed(episode, options.camera_names)
        return transformed(episode, options.action_parts, options.skip_first)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [episodes]: the number of steps of each."""
        return np.array([len(episode) for episode in self], np.int64)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that every episode with steps has."""
        common: list[str] | None = None
        for episode in self:
            if len(episode):
                mine = list(episode.cameras)
                common = mine if common is None else [name for name in common if name in mine]
        return tuple(common or ())

    @cached_property
    def lost_cameras(self) -> dict[str, str]:
        """Cameras that some episodes have and others lack, and which do, in a few words."""
        episodes = [episode for episode in self if len(episode)]
        some = {camera for episode in episodes for camera in episode.cameras} - set(self.cameras)
        found = {}
        for camera in sorted(some):
            lacking = [episode.name for episode in episodes if camera not in episode.cameras]
            found[camera] = (
                f"camera {camera} is not in {len(lacking)} of {len(episodes)} episodes, the first "
                f"{lacking[0]}"
            )
        return found

    def content_files(self) -> set[Path]:
        """The files that steps and images come from, those that are there."""
        found = {Path(episode.file) for episode in self}
        whole = {file for path in found if path.is_dir() for file in path.rglob("*")}
        return {file for file in found | whole if file.is_file()}

    @cached_property
    def origins(self) -> Counter[Origin]:
        """How many episodes have a recorded instruction, the option's, or the default."""
        return Counter(episode.said.origin for episode in self if len(episode))

    @property
    def rates_differ(self) -> bool:
        """Whether the stated rate differs from that of the timestamps."""
        if self.fps is None or self.measured_fps is None:
            return False
        return abs(self.measured_fps - self.fps) > _SAME_RATE * self.fps

    def compare_rates(self, stated_by: str, times: Sequence[np.ndarray]) -> None:
        """Measure the rate by timestamps, float [T] in seconds an episode, and note a
        contradiction."""
        self.measured_fps = _measured_rate(times)
        if self.rates_differ:
            self.note(
                f"{stated_by} says {self.fps:g} Hz, the timestamps of the steps say "
                f"{self.measured_fps:g} Hz; one of them is wrong"
            )
        elif self.measured_fps is None and any(len(episode) > 1 for episode in times):
            self.note(
                "the timestamps of the steps do not increase, or are too large to be exact: they "
                "do not say how many steps a second there are"
            )

    def note(self, text: str) -> None:
        """Add a note on the data, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def color_orders(self) -> tuple[ColorOrder, ...]:
        """The orders of colours found in the files; images are handed out as RGB anyway."""
        found = {episode.color_order for episode in self}
        return tuple(cast(list[ColorOrder], sorted(found)))

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Read everything, images and the placeholder steps included, and return the damage.

        progress: called with the number of episodes read so far and of all.
        """
        found = {item: None for item in self.damage}
        for number in range(len(self)):
            if progress is not None:
                progress(number, len(self))
            found |= {item: None for item in self.episode(number).verify()}
            # Formats read episode by episode find damage on the way.
            found |= {item: None for item in self.damage}
        return sorted(found, key=lambda item: (item.file, item.record, item.cause))

    def report(self, damage: Iterable[Damage]) -> None:
        """Add to the damage known; UserError past the budget."""
        self.damage = list(dict.fromkeys([*self.damage, *damage]))
        check_budget(self.damage, self.seen, self.options.damage_budget)


def _measured_rate(times: Iterable[np.ndarray]) -> float | None:
    """Steps a second by the median distance of times, one float [T] in seconds an episode.

    Episodes count whose times increase and are not too large for the float32 that files store them
    as; None where none does.
    """
    steps = [np.diff(episode) for episode in times if len(episode) > 1 and _is_exact(episode)]
    return 1 / float(np.median(np.concatenate(steps))) if steps else None


def _is_exact(times: np.ndarray) -> bool:
    resolution = float(np.spacing(np.float32(np.abs(times).max())))
    return resolution < _SAME_RATE / 2 * float(np.median(np.diff(times)))  # false for NaN


def usual_sizes(sizes: Iterable[tuple[tuple[int, int], int]]) -> tuple[int, int]:
    """The sizes of (states, actions) that most steps have; given: sizes and steps by episode."""
    counts: Counter[tuple[int, int]] = Counter()
    for size, steps in sizes:
        counts[size] += steps
    return counts.most_common(1)[0][0] if counts else (0, 0)
