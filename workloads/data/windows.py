"""Windows of consecutive steps, each with its chunk of actions, for policies with memory.

A window starts at a step of a segment, has `window` steps with images, and at each of them the
`chunk` actions from that step on. Past the segment's end its last step is repeated with mask 0.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.lru import LruCache
from workloads.errors import UserError

Decode = Callable[[np.ndarray], np.ndarray]
# camera, episode, step, and the function that decodes an image not kept yet
Keep = Callable[[str, int, int, Callable[[], np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class WindowOptions:
    """How windows are cut.

    window: steps of a window; chunk: actions of each step; stride: steps between two starts in a
    segment; cameras: by default all that the dataset has. frames_kept: how many steps' images stay
    in memory, which bounds it: at 200 x 200 and 84 x 84 pixels 1024 take 145 MB.
    """

    window: int
    chunk: int
    stride: int = 1
    cameras: tuple[str, ...] = ()
    frames_kept: int = 1024

    def __post_init__(self) -> None:
        for name in ("window", "chunk", "stride"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"expected a {name} of at least 1, found {getattr(self, name)}; raise it"
                )
        if self.frames_kept < self.window:
            raise UserError(
                f"expected frames_kept of at least the window's {self.window} steps, found "
                f"{self.frames_kept}; give more"
            )


@dataclass(frozen=True)
class Window:
    """One sample: W steps, K actions at each.

    images: camera to uint8 [W, H, W', 3], or what `decode` made of each, stacked; states float32
    [W, D]; actions float32 [W, K, A] in the recorder's units; mask bool [W, K]: which of them are
    real; rows int64 [W]: of the window's own images; action_rows, next_rows int64 [W, K]: of the
    actions, and one step after each (images to foresee), where next_mask says which are real.
    """

    episode: int
    instruction: str
    rows: np.ndarray
    images: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    mask: np.ndarray
    action_rows: np.ndarray
    next_rows: np.ndarray
    next_mask: np.ndarray


@dataclass(frozen=True)
class _Place:
    """One segment: steps `first` to `last` of an episode, both included, and its windows.

    sound: how many of them have an action of their own; starts: counted from `first`.
    """

    episode: int
    first: int
    last: int
    sound: int
    starts: range


class Windows(Sequence[Window]):
    """All windows of a dataset, by number in the order of its episodes.

    Where an episode's last step has no action of its own (`last_step_pads`: CALVIN), that step
    already is padding. A segment shorter than the window gives none.

    Each step's images are read and decoded once for all windows that hold them, those of
    overlapping episodes too, as long as windows are taken in the order of `order`.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: WindowOptions,
        decode: Decode | None = None,
        episodes: Sequence[int] | None = None,
        keep: Keep | None = None,
    ) -> None:
        """decode: what a camera's image, uint8 [H, W, 3], becomes before it is kept; episodes: the
        numbers of those to take, by default all; keep: a cache of decoded images that outlives this
        object.
        """
        self.dataset = dataset
        self.options = options
        self.cameras = options.cameras or dataset.cameras
        for camera in self.cameras:
            if camera not in dataset.cameras:
                there = ", ".join(dataset.cameras) or "none"
                raise UserError(
                    f"{dataset.path}: expected one of the cameras {there}, found {camera!r}; "
                    "choose one of those"
                )
        self._decode = decode
        self._keep = keep
        numbers = range(len(dataset)) if episodes is None else episodes
        self._places = list(_places(dataset, options, numbers))
        self._ends = np.cumsum([len(place.starts) for place in self._places])
        self._images: LruCache[tuple[int, str, int], np.ndarray] = LruCache(
            options.frames_kept * max(1, len(self.cameras))
        )
        if not self._places:
            raise UserError(
                f"{dataset.path}: expected an episode of at least {options.window} steps, found "
                "none; choose a shorter window"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int) -> Window:  # type: ignore[override]
        """Raises DamagedRecord where an image cannot be read."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"window {item} of {len(self)}")
        place, start = self._at(item % len(self))
        return self._window(place, start)

    def order(self, seed: int, epoch: int = 0) -> list[int]:
        """Every window once, shuffled so that no image is decoded twice in an epoch.

        Episodes are shuffled, and then the windows of as many of them as `frames_kept` holds;
        episodes that share steps stay together.
        """
        rng = random.Random(f"{seed} {epoch}")
        groups = list(self._groups())
        rng.shuffle(groups)
        order: list[int] = []
        block: list[int] = []
        held = 0
        for windows, steps in groups:
            if held + steps > self.options.frames_kept:
                rng.shuffle(block)
                order += block
                block, held = [], 0
            if steps > self.options.frames_kept:
                order += windows  # in the order of their steps: those of all do not fit
            else:
                block += windows
                held += steps
        rng.shuffle(block)
        return order + block

    def _at(self, number: int) -> tuple[_Place, int]:
        which = int(np.searchsorted(self._ends, number, side="right"))
        place = self._places[which]
        return place, place.starts[number - int(self._ends[which]) + len(place.starts)]

    def _window(self, place: _Place, start: int) -> Window:
        episode = self.dataset[place.episode]
        window, chunk = self.options.window, self.options.chunk
        # Entry (t, k) is step t + k; images to foresee are one step later.
        ahead = start + np.arange(window)[:, None] + np.arange(chunk + 1)[None, :]
        steps = np.minimum(place.first + ahead, place.last)
        real = ahead < place.sound
        own = place.first + start + np.arange(window)
        return Window(
            episode=place.episode,
            instruction=episode.instruction_at(int(own[0])),
            rows=episode.rows[own],
            images={
                camera: self._stacked(place.episode, episode, camera, own)
                for camera in self.cameras
            },
            states=episode.states[own],
            actions=episode.actions[steps[:, :-1]],
            mask=real[:, :-1],
            action_rows=episode.rows[steps[:, :-1]],
            next_rows=episode.rows[steps[:, 1:]],
            next_mask=real[:, 1:],
        )

    def _groups(self) -> Iterator[tuple[list[int], int]]:
        """Windows whose steps overlap, by their rows, and how many steps these are at most."""
        numbered = []
        for place, end in zip(self._places, self._ends.tolist(), strict=True):
            row = int(self.dataset[place.episode].rows[place.first])
            first = end - len(place.starts)
            windows = [(row + start, first + n) for n, start in enumerate(place.starts)]
            numbered.append((self._recording(place.episode), windows))
        numbered.sort(key=lambda item: (item[0], item[1][0]))
        group: list[tuple[int, int]] = []
        ends_at, recording = -1, -1
        for own, windows in numbered:
            if group and (own != recording or windows[0][0] >= ends_at):
                yield [number for _, number in sorted(group)], ends_at - group[0][0]
                group, ends_at = [], -1
            group += windows
            recording = own
            ends_at = max(ends_at, windows[-1][0] + self.options.window)
        yield [number for _, number in sorted(group)], ends_at - group[0][0]

    def _recording(self, episode: int) -> int:
        """Key that distinguishes rows of different episodes, where their numbers do not."""
        return 0 if self.dataset.shares_rows else episode

    def _stacked(self, number: int, episode: Episode, camera: str, steps: np.ndarray) -> np.ndarray:
        return np.stack([self._image(number, episode, camera, int(step)) for step in steps])

    def _image(self, number: int, episode: Episode, camera: str, step: int) -> np.ndarray:
        def load() -> np.ndarray:
            pixels = episode.image(camera, step)
            return pixels if self._decode is None else self._decode(pixels)

        def kept() -> np.ndarray:
            return load() if self._keep is None else self._keep(camera, number, step, load)

        recording = self._recording(number)
        return self._images.get((recording, camera, int(episode.rows[step])), kept)


def starts(dataset: Dataset, options: WindowOptions, episodes: Sequence[int]) -> np.ndarray:
    """int32 [n, 2]: episode and first step of every window, in the order of `Windows`."""
    found = [
        (place.episode, place.first + start)
        for place in _places(dataset, options, episodes)
        for start in place.starts
    ]
    return np.array(found, np.int32).reshape(-1, 2)


def _places(dataset: Dataset, options: WindowOptions, episodes: Sequence[int]) -> Iterator[_Place]:
    """The segments that hold windows."""
    for number in episodes:
        episode = dataset[number]
        for segment in episode.segments:
            steps = segment.stop - segment.start
            pads = dataset.last_step_pads and segment.stop == len(episode)
            sound = steps - 1 if pads else steps
            begins = range(0, sound - options.window + 1, options.stride)
            if len(begins):
                yield _Place(number, segment.start, segment.stop - 1, sound, begins)
