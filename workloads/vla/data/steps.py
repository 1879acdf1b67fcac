"""Steps of demonstrations as samples of a model: images, prompt, action tokens, labels.

A map-style dataset, so that order and resume belong to the trainer. Everything random in a
sample follows from (seed, epoch, its number): a resumed run sees the same images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from workloads.data.robot import DamagedRecord, Episode
from workloads.errors import UserError
from workloads.vla.actions import ActionTokenizer, normalize
from workloads.vla.config import Augmentation
from workloads.vla.data.augment import augment, centre_crop
from workloads.vla.data.prepare import Part
from workloads.vla.processing import (
    ImageProcessor,
    Tokenizer,
    build_example,
    pad_examples,
    tokenize_prompt,
    training_prompt,
)
from workloads.vla.statistics import Statistics

# An unreadable step is replaced by the next readable one, at most so many further on.
_TRIES = 64


@dataclass
class Maker:
    """Turns a step of an episode into a sample; shared by training and evaluation."""

    processor: ImageProcessor
    tokenizer: Tokenizer
    actions: ActionTokenizer
    statistics: Statistics
    augmentation: Augmentation
    chunk: int = 1
    proprio: bool = False
    _prompts: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(
        self, part: Part, number: int, step: int, random: np.random.Generator | None
    ) -> dict[str, Any]:
        """A step of the part's episode `number`. random: where images are to be varied; None
        crops the centre instead.

        input_ids, labels int64 [L]; pixel_values float32 [C x cameras, H, W]; actions float32
        [chunk, A], normalised; proprio float32 [P], normalised, where the model takes it.
        """
        episode = part.dataset[number]
        pixels = [
            self._image(self._resized(part, at, number, episode, step), random)
            for at in range(len(part.cameras))
        ]
        stats = self.statistics[part.name]
        actions = normalize(self._actions(episode, step), stats["action"])
        row: dict[str, Any] = build_example(
            self._prompt(episode.instruction_at(step)), self.actions.encode(actions)
        )
        row["pixel_values"] = np.concatenate(pixels)
        row["actions"] = actions.astype(np.float32)
        if self.proprio:
            row["proprio"] = normalize(episode.states[step], stats["proprio"]).astype(np.float32)
        return row

    def _resized(
        self, part: Part, camera: int, number: int, episode: Episode, step: int
    ) -> np.ndarray:
        """The image of one of the part's cameras at the model's size, uint8 [H, W, 3]."""

        def load() -> np.ndarray:
            return self.processor.resize(episode.pillow(part.cameras[camera], step))

        return load() if part.frames is None else part.frames.get(camera, number, step, load)

    def _image(self, pixels: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
        how = self.augmentation
        if not how.enabled or random is None:
            return self.processor.normalize(centre_crop(pixels, how.served_area))
        return self.processor.normalize(augment(pixels, how, random))

    def _actions(self, episode: Episode, step: int) -> np.ndarray:
        """Actions float32 [chunk, A]; past the end of the episode its last action is repeated."""
        steps = np.minimum(np.arange(step, step + self.chunk), len(episode) - 1)
        return episode.actions[steps]

    def _prompt(self, instruction: str) -> np.ndarray:
        if instruction not in self._prompts:
            self._prompts[instruction] = tokenize_prompt(
                self.tokenizer, training_prompt(instruction)
            )
        return self._prompts[instruction]


class Steps(TorchDataset[dict[str, Any]]):
    """The samples of one epoch over all parts, each by its weight; `epoch` is set before each."""

    def __init__(
        self, parts: Sequence[Part], maker: Maker, seed: int, varied: bool, most: int | None = None
    ) -> None:
        self.parts = tuple(_thinned(parts, most))
        self.maker = maker
        self.seed = seed
        self.varied = varied
        self.epoch = 0
        counts = [max(1, round(part.weight * len(part.places))) for part in self.parts]
        self._ends = np.cumsum(counts if varied else [len(part.places) for part in self.parts])
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The sample, with `part`, `row_id` and `damage`, the damaged steps that were skipped."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        within = number - (int(self._ends[which - 1]) if which else 0)
        part, damage = self.parts[which], []
        first = self._place(which, within)
        for place in range(first, first + _TRIES):
            place %= len(part.places)
            episode_number, step = (int(value) for value in part.places[place])
            random = np.random.default_rng([self.seed, self.epoch, number]) if self.varied else None
            try:
                row = self.maker(part, episode_number, step, random)
            except DamagedRecord as error:
                damage.append(error.damage)
                continue
            return {**row, "part": which, "row_id": part.row_id(place), "damage": damage}
        raise UserError(
            f"{part.dataset.path}: expected a readable step, found {_TRIES} damaged ones in a row "
            f"from {damage[0]}; run data inspect"
        )

    def _place(self, which: int, within: int) -> int:
        """Part and place of a sample: a pass uses all places, a partial one new ones each epoch."""
        part = self.parts[which]
        passes, place = divmod(within, len(part.places))
        whole = round(part.weight * len(part.places)) // len(part.places)
        if not self.varied or passes < whole:
            return place
        key = (which, self.epoch)
        if key not in self._orders:
            random = np.random.default_rng([self.seed, self.epoch, which])
            self._orders = {key: random.permutation(len(part.places))} | {
                kept: order for kept, order in self._orders.items() if kept[1] == self.epoch
            }
        return int(self._orders[key][place])


def _thinned(parts: Sequence[Part], most: int | None) -> list[Part]:
    """The parts with at most so many places in total, evenly spread."""
    total = sum(len(part.places) for part in parts)
    if most is None or total <= most:
        return list(parts)
    chosen = np.unique(np.linspace(0, total - 1, most).round().astype(np.int64))
    starts = np.cumsum([0, *(len(part.places) for part in parts)])
    kept = []
    for part, start in zip(parts, starts, strict=False):
        mine = chosen[(chosen >= start) & (chosen < start + len(part.places))] - start
        if len(mine):
            kept.append(replace(part, places=part.places[mine]))
    return kept


@dataclass(frozen=True)
class Collate:
    """Samples → a batch, padded on the right.

    Tensors: input_ids, labels, attention_mask int64 [B, L]; pixel_values float32 [B, C, H, W];
    for an OFT head actions [B, chunk, A] and proprio [B, P]. Besides, for the trainer to take out:
    parts int64 [B], row_ids, damage, and tokens, the number of positions that the model computes.
    """

    pad_token_id: int
    patches: int
    with_actions: bool

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = pad_examples(rows, self.pad_token_id)
        batch: dict[str, Any] = {name: torch.from_numpy(value) for name, value in texts.items()}
        names = ["pixel_values", *(["actions"] if self.with_actions else [])]
        names += ["proprio"] if "proprio" in rows[0] else []
        for name in names:
            batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
        return batch | {
            "parts": torch.tensor([row["part"] for row in rows]),
            "row_ids": [[row["row_id"]] for row in rows],
            "damage": [item for row in rows for item in row["damage"]],
            "tokens": int(texts["attention_mask"].sum()) + self.patches * len(rows),
        }
