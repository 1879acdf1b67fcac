"""One shape of episodes and data sets, whatever the files look like.

An episode with damaged records keeps all its good ones: the action of a step is stored with the
step, so its neighbours stay sound. `rows` then jumps, and `segments` are the runs without a jump,
which is what anything that looks at several steps in a row (action chunks) must stay within.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, cast, overload

import numpy as np

from workloads.data.tfrecord import Damage, DamagedRecord, check_budget
from workloads.errors import UserError

ColorOrder = Literal["rgb", "bgr"]
Progress = Callable[[int, int], None]
DEFAULT_INSTRUCTION = "manipulate the object"


@dataclass(frozen=True)
class Options:
    """How a data set is opened; see `open_dataset` for each."""

    drop_last_placeholder: bool = True
    color_order: ColorOrder | None = None
    cache_dir: Path | None = None
    instruction: str | None = None
    damage_budget: float | None = None
    split: str | None = None
    state_keys: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()


class Source(Protocol):
    """Where the pictures of an episode come from; `row` is the step's number in the file."""

    def encoded(self, camera: str, row: int) -> bytes | None:
        """The picture as stored, None where it is not stored as a picture of its own."""

    def pixels(self, camera: str, row: int) -> np.ndarray:
        """uint8 [H, W, 3] in the stored order of colours; raises DamagedRecord."""

    def depth(self, camera: str, row: int) -> np.ndarray:
        """float32 [H, W] in the recorder's unit; raises DamagedRecord."""


@dataclass(frozen=True)
class Episode:
    """One demonstration: T steps of states, actions and pictures.

    states float32 [T, D], actions float32 [T, A] in the recorder's units (CRANE-X7: rad);
    rows int64 [T], the step's number in the file; timestamps float64 [T] in seconds or None.
    """

    name: str
    states: np.ndarray
    actions: np.ndarray
    instruction: str
    cameras: tuple[str, ...]
    rows: np.ndarray
    source: Source
    file: str
    color_order: ColorOrder = "rgb"
    timesteps: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    depth_cameras: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    def image(self, camera: str, t: int) -> np.ndarray:
        """The camera's picture at step t, uint8 [H, W, 3], true red, green, blue."""
        pixels = self.source.pixels(self._known(camera, self.cameras), self._row(t))
        return np.ascontiguousarray(pixels[..., ::-1]) if self.color_order == "bgr" else pixels

    def encoded(self, camera: str, t: int) -> bytes | None:
        """The picture as stored, before any exchange of red and blue; None where there is none."""
        return self.source.encoded(self._known(camera, self.cameras), self._row(t))

    def depth(self, camera: str, t: int) -> np.ndarray:
        """The camera's depth picture at step t, float32 [H, W], CRANE-X7: mm, 0 = no return."""
        return self.source.depth(self._known(camera, self.depth_cameras), self._row(t))

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

    def take(self, steps: slice) -> "Episode":
        """The same episode with only some of its steps."""
        return replace(
            self,
            states=self.states[steps],
            actions=self.actions[steps],
            rows=self.rows[steps],
            timesteps=None if self.timesteps is None else self.timesteps[steps],
            timestamps=None if self.timestamps is None else self.timestamps[steps],
        )

    def without_placeholder(self) -> "Episode":
        """Without the last step where its action is its own state: that teaches to stand still.

        Where the last step recorded is damaged, the one before it has a real action and stays.
        """
        if len(self) and np.array_equal(self.actions[-1], self.states[-1]):
            return self.take(slice(0, len(self) - 1))
        return self

    def verify(self) -> Iterator[Damage]:
        """Read every picture of every step and yield what cannot be read."""
        for row in self.rows:
            for camera in self.cameras:
                yield from _damage_of(self.source.pixels, camera, int(row))
            for camera in self.depth_cameras:
                yield from _damage_of(self.source.depth, camera, int(row))

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
    """Episodes in a fixed order, read when asked for.

    `format` names the files' format, `name` the data set's entry in the statistics, `fps` steps a
    second where the files or the format say so, `damage` what was found wrong so far.
    """

    format: str
    name: str
    fps: float | None

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self.damage: list[Damage] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def episode(self, number: int) -> Episode:
        """The episode with all its good steps, the placeholder included."""

    @overload
    def __getitem__(self, item: int) -> Episode: ...
    @overload
    def __getitem__(self, item: slice) -> list[Episode]: ...
    def __getitem__(self, item: int | slice) -> Episode | list[Episode]:
        if isinstance(item, slice):
            return [self[number] for number in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"episode {item} of {self.path}, which has {len(self)} episodes")
        episode = self.episode(item % len(self))
        return episode.without_placeholder() if self.options.drop_last_placeholder else episode

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

    @property
    def color_orders(self) -> tuple[ColorOrder, ...]:
        """The orders of colours found in the files; pictures are handed out as RGB anyway."""
        found = {episode.color_order for episode in self}
        return tuple(cast(list[ColorOrder], sorted(found)))

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Read everything, pictures and the placeholder steps included, and return the damage.

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

    def report(self, damage: Iterable[Damage], seen: int) -> None:
        """Add to the damage known; UserError past the budget, `seen` records read so far."""
        known = set(self.damage)
        self.damage.extend(item for item in damage if item not in known)
        check_budget(self.damage, seen, self.options.damage_budget)


def instruction_of(candidates: Iterable[str], options: Options) -> str:
    """The first instruction that says something, else the option's, else the field's default."""
    for text in candidates:
        if text.strip():
            return text
    return (options.instruction or "").strip() or DEFAULT_INSTRUCTION


def decode_instruction(raw: bytes) -> str | None:
    """UTF-8 to text, None where it is none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
