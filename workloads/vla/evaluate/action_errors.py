"""Errors of predicted actions, summed on the model's device and copied to the host for logging.

Action tokens are compared under teacher forcing, as the field does; chunks as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.vla.actions import ActionTokenizer
from workloads.vla.data.prepare import Part
from workloads.vla.statistics import Statistics

# The sums before those of the dimensions; `compared` counts tokens, `steps` actions.
_SAMPLES, _RIGHT, _COMPARED, _STEPS, _HEAD = range(5)


class ActionMeter:
    """Sums over batches; one for training, one for held-out episodes."""

    def __init__(
        self, tokenizer: ActionTokenizer, statistics: Statistics, parts: Sequence[Part], chunk: int
    ) -> None:
        self.first_id = tokenizer.first_id
        self.vocab_size = tokenizer.vocab_size
        self._centres = torch.from_numpy(tokenizer.centres).float()
        self._scales = torch.from_numpy(np.stack([_scale(statistics, part) for part in parts]))
        self._scales = self._scales.float()
        self._slots = chunk * self._scales.shape[1]
        self._sums: Tensor | None = None

    @property
    def logged(self) -> tuple[str, ...]:
        return ("action_accuracy", "l1")

    @property
    def dimensions(self) -> int:
        return int(self._scales.shape[1])

    @torch.no_grad()
    def add(self, outputs: Any, parts: Tensor, inputs: Mapping[str, Any]) -> None:
        """outputs: of the model; parts [B]; inputs: with actions [B, chunk, A] of an L1 head."""
        actions = inputs.get("actions")
        right: Tensor | None = None
        if getattr(outputs, "predicted_actions", None) is not None and actions is not None:
            error = (outputs.predicted_actions.float() - actions.float()).abs()
        else:
            error, right = self._token_error(outputs.logits, outputs.targets, len(parts))
        self._centres, self._scales = self._centres.to(error), self._scales.to(error)
        error = error.reshape(len(parts), -1, self.dimensions)
        physical = error * self._scales[parts.to(error.device)][:, None]
        head = error.new_zeros(_HEAD)
        head[_SAMPLES], head[_STEPS] = len(parts), error.shape[0] * error.shape[1]
        if right is not None:
            head[_RIGHT], head[_COMPARED] = right.sum(), right.numel()
        sums = torch.cat([head, error.sum(dim=(0, 1)), physical.sum(dim=(0, 1))]).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def _token_error(self, logits: Tensor, targets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """|decoded difference| and whether the token is right, [B, slots] each.

        Every row has one label a slot, and one for the end of the text.
        """
        found = logits.argmax(dim=-1).reshape(rows, -1)[:, : self._slots]
        wanted = targets.reshape(rows, -1)[:, : self._slots]
        return (self._decoded(found) - self._decoded(wanted)).abs(), found == wanted

    def _decoded(self, ids: Tensor) -> Tensor:
        centres = self._centres.to(ids.device)
        return centres[(self.vocab_size - ids - 1).clamp(0, len(centres) - 1)]

    def take(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Means since the last call, over all ranks; `total` sums a tensor [n] over them.

        samples; action_accuracy, of tokens alone; l1, normalised; error_<d>, mean |difference| of
        dimension d in the robot's units.
        """
        own = torch.zeros(_HEAD + 2 * self.dimensions, dtype=torch.float64, device=device)
        if self._sums is not None:
            own += self._sums
        self._sums = None
        sums = total(own).cpu().numpy()
        if not sums[_STEPS]:
            return {}
        normalised, physical = np.split(sums[_HEAD:] / sums[_STEPS], 2)
        found = {"samples": float(sums[_SAMPLES])}
        if sums[_COMPARED]:
            found["action_accuracy"] = float(sums[_RIGHT] / sums[_COMPARED])
        found["l1"] = float(normalised.mean())
        return found | {f"error_{at}": float(value) for at, value in enumerate(physical)}


def _scale(statistics: Statistics, part: Part) -> np.ndarray:
    """Robot units to one normalised unit, [A]; 1 where a dimension is not normalised."""
    stats = statistics[part.name]["action"]
    half = (np.asarray(stats["q99"]) - np.asarray(stats["q01"])) / 2
    return np.where(np.asarray(stats.get("mask", np.ones_like(half))).astype(bool), half, 1.0)
