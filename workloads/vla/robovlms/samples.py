"""Windows of demonstrations as samples of a policy head.

Everything random in a sample follows from (seed, epoch, its number): a resumed run sees the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from workloads.data.robot import DamagedRecord
from workloads.data.windows import Keep, Window, Windows
from workloads.errors import UserError
from workloads.vla.actions import ActionTokenizer, normalize
from workloads.vla.config import Augmentation, VlaConfig
from workloads.vla.data.augment import augment, centre_crop
from workloads.vla.data.prepare import Part, window_options
from workloads.vla.processing import IGNORE_INDEX, ImageProcessor
from workloads.vla.robovlms.actions import ActionScale
from workloads.vla.robovlms.backbones import Backbone

# An unreadable window is replaced by the next readable one, at most so many further on.
_TRIES = 64


@dataclass
class WindowMaker:
    """Turns a window into a sample; shared by training and evaluation.

    scales: by dataset; states: statistics of the robot's state by dataset, where it is given.
    """

    processor: ImageProcessor
    tokenizer: Any
    adapter: Backbone
    scales: Mapping[str, ActionScale]
    states: Mapping[str, Mapping[str, Any]] | None
    augmentation: Augmentation
    shift: Mapping[str, int]
    discrete: ActionTokenizer | None
    chunk: int
    gripper: bool
    _prompts: dict[str, list[int]] = field(default_factory=dict)

    def __call__(
        self, part: Part, window: Window, random: np.random.Generator | None
    ) -> dict[str, Any]:
        """random: where images are to be varied; None crops the centre instead.

        pixel_values float32 [W, cameras, 3, S, S]; text: ids; actions float32 [W, chunk, A],
        normalised, a gripper 0 or 1; valid bool [W, chunk]; states float32 [W, P], normalised.
        """
        images = [
            self._images(window.images[camera], self.shift.get(camera, 0), random)
            for camera in part.cameras
        ]
        row: dict[str, Any] = {
            "pixel_values": np.stack(images, axis=1),
            "actions": self.scales[part.name].labels(window.actions),
            "valid": window.mask,
        }
        row["texts"], row["labels"] = self._texts(window.instruction, row["actions"], window.mask)
        if self.states is not None:
            row["states"] = normalize(window.states, self.states[part.name]).astype(np.float32)
        return row

    def _images(
        self, frames: np.ndarray, shift: int, random: np.random.Generator | None
    ) -> np.ndarray:
        """uint8 [W, S, S, 3] → float32 [W, 3, S, S]; all frames of a window are varied alike but
        for the shift, which is drawn for each."""
        how = self.augmentation
        if random is None or not how.enabled:
            made = [
                self.processor.normalize(centre_crop(frame, how.served_area)) for frame in frames
            ]
        else:
            seed = int(random.integers(2**63))
            made = [
                self.processor.normalize(augment(frame, how, np.random.default_rng(seed)))
                for frame in frames
            ]
        if random is not None and shift:
            made = [shifted(item, shift, random) for item in made]
        return np.stack(made)

    def _texts(
        self, instruction: str, actions: np.ndarray, mask: np.ndarray
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """One text for all frames, or of discrete actions one a frame, with labels."""
        if instruction not in self._prompts:
            self._prompts[instruction] = (
                self.adapter.prompt(self.tokenizer, instruction)
                if self.discrete is None
                else self.adapter.action_prompt(self.tokenizer, instruction, self.chunk)
            )
        prompt = self._prompts[instruction]
        if self.discrete is None:
            return [prompt], None
        ids = discrete_ids(self.discrete, actions, self.gripper)
        end = self.tokenizer.eos_token_id
        texts = [[*prompt, *frame.ravel().tolist(), end] for frame in ids]
        known = np.where(mask[..., None], ids, IGNORE_INDEX)
        ignored = [IGNORE_INDEX] * len(prompt)
        labels = [[*ignored, *frame.ravel().tolist(), end] for frame in known]
        return texts, labels


def discrete_ids(tokenizer: ActionTokenizer, actions: np.ndarray, gripper: bool) -> np.ndarray:
    """Normalised actions [..., A] → int64 ids of that shape.

    A gripper value other than 1 gets the first bin.
    """
    values = actions.astype(np.float32)
    if gripper:
        values[..., -1] = np.where(values[..., -1] == 1, tokenizer.edges[-1], tokenizer.edges[0])
    return tokenizer.encode(values)


def shifted(pixels: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """float32 [3, S, S] moved by up to `most` pixels either way, its border repeated outwards."""
    down, right = random.integers(0, 2 * most + 1, 2)
    padded = np.pad(pixels, ((0, 0), (most, most), (most, most)), mode="edge")
    return padded[:, down : down + pixels.shape[1], right : right + pixels.shape[2]]


class WindowSamples(TorchDataset[dict[str, Any]]):
    """The windows of one epoch over all parts, by weight, in reading order: shuffled so that a
    step's images are decoded once. `epoch` is set before each.

    readers: number of parallel processes, which read `batch` samples at a time; each gets its own
    stretch of the order, so that no two decode the same images.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        maker: WindowMaker,
        config: VlaConfig,
        varied: bool,
        readers: int = 1,
    ) -> None:
        self.parts = tuple(part for part in parts if len(part.places))
        self.maker = maker
        self.seed = config.train.seed
        self.varied = varied
        self.readers, self.batch = readers, config.train.per_device_batch_size
        options = [window_options(config, part.cameras) for part in self.parts]
        self._windows = [
            Windows(part.dataset, own, maker.processor.resize, part.episodes, _keep(part))
            for part, own in zip(self.parts, options, strict=True)
        ]
        self._most = None if varied else config.evaluation.samples
        self._order: tuple[int, np.ndarray] | None = None
        self.epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        """The epoch; setting it makes the order, before workers are forked or pickled."""
        self._epoch = epoch
        if self._order is None or (self.varied and self._order[0] != epoch):
            self._order = (epoch, self._drawn() if self.varied else self._thinned())

    def __len__(self) -> int:
        assert self._order is not None
        return len(self._order[1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The sample, with `part`, `row_id` and `damage`, the damaged windows that were skipped."""
        assert self._order is not None
        which, first = (int(value) for value in self._order[1][number])
        part, windows, damage = self.parts[which], self._windows[which], []
        for window in range(first, first + _TRIES):
            window %= len(windows)
            random = np.random.default_rng([self.seed, self.epoch, number]) if self.varied else None
            try:
                row = self.maker(part, windows[window], random)
            except DamagedRecord as error:
                damage.append(error.damage)
                continue
            return {**row, "part": which, "row_id": part.row_id(window), "damage": damage}
        raise UserError(
            f"{part.dataset.path}: expected a readable window, found {_TRIES} damaged ones in a "
            f"row from {damage[0]}; run data inspect"
        )

    def _drawn(self) -> np.ndarray:
        """int64 [n, 2]: part and window of every sample of this epoch."""
        drawn: list[np.ndarray] = []
        for which, (part, windows) in enumerate(zip(self.parts, self._windows, strict=True)):
            count = max(1, round(part.weight * len(windows)))
            order: list[int] = []
            turn = 0
            while len(order) < count:
                order += windows.order(self.seed, self.epoch * 1000 + turn)
                turn += 1
            chosen = np.array(order[:count])
            drawn.append(np.stack([np.full(count, which), chosen], axis=1))
        # Each part's windows keep their order among the others'.
        random = np.random.default_rng([self.seed, self.epoch])
        turns = random.permutation(np.repeat(np.arange(len(drawn)), [len(own) for own in drawn]))
        merged = np.empty((len(turns), 2), np.int64)
        for which, own in enumerate(drawn):
            merged[turns == which] = own
        return merged[dealt(len(merged), self.readers, self.batch)]

    def _thinned(self) -> np.ndarray:
        """As `_drawn`, for evaluation: at most so many, evenly spread, in their own order."""
        whole = np.concatenate(
            [
                np.stack([np.full(len(windows), which), np.arange(len(windows))], axis=1)
                for which, windows in enumerate(self._windows)
            ]
        )
        if self._most is None or len(whole) <= self._most:
            return whole
        return whole[np.unique(np.linspace(0, len(whole) - 1, self._most).round().astype(np.int64))]


def dealt(count: int, readers: int, batch: int) -> np.ndarray:
    """An order of `count` samples, int64 [count], for readers that take batches in turn.

    Each reader gets a stretch of its own, and the remainder comes last.
    """
    turns = count // (readers * batch)
    whole = turns * readers * batch
    stretches = np.arange(whole).reshape(readers, turns, batch).swapaxes(0, 1)
    return np.concatenate([stretches.ravel(), np.arange(whole, count)])


def _keep(part: Part) -> Keep | None:
    """Cache of decoded images that outlives an epoch."""
    frames = part.frames
    if frames is None:
        return None
    return lambda camera, episode, step, load: frames.get(
        part.cameras.index(camera), episode, step, load
    )


@dataclass(frozen=True)
class WindowCollate:
    """Samples → a batch, texts padded on the right.

    Tensors: pixel_values float32 [B, W, cameras, 3, S, S]; input_ids, attention_mask int64 [B, L],
    or with discrete actions [B, W, L] and labels beside them; actions [B, W, chunk, A]; valid
    [B, W, chunk]; states [B, W, P]. Besides, for the trainer to take out: parts int64 [B], row_ids,
    damage, and tokens, the number of positions that the model computes.
    """

    pad_token_id: int
    image_tokens: int
    latent: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = [text for row in rows for text in row["texts"]]
        ids = _padded(texts, self.pad_token_id)
        mask = _padded([[1] * len(text) for text in texts], 0)
        frames, cameras = rows[0]["pixel_values"].shape[:2]
        batch: dict[str, Any] = {
            name: torch.from_numpy(np.stack([row[name] for row in rows]))
            for name in ("pixel_values", "actions", "valid", "states")
            if name in rows[0]
        }
        if rows[0]["labels"] is not None:
            labels = _padded([own for row in rows for own in row["labels"]], IGNORE_INDEX)
            batch["labels"] = labels.unflatten(0, (len(rows), frames))
            ids, mask = (both.unflatten(0, (len(rows), frames)) for both in (ids, mask))
        words = int(mask.sum()) * (1 if ids.ndim == 3 else frames)
        images = len(rows) * frames * (cameras * self.image_tokens + self.latent)
        return batch | {
            "input_ids": ids,
            "attention_mask": mask,
            "parts": torch.tensor([row["part"] for row in rows]),
            "row_ids": [[row["row_id"]] for row in rows],
            "damage": [item for row in rows for item in row["damage"]],
            "tokens": words + images,
        }


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Pad rows of ids to int64 [rows, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
