"""Errors of a policy head, summed on its device and copied to the host for logging."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from workloads.vla.actions import ActionTokenizer
from workloads.vla.data.prepare import Part
from workloads.vla.processing import IGNORE_INDEX
from workloads.vla.robovlms.actions import ActionScale

# The sums before those of the arm's numbers.
_SAMPLES, _STEPS, _HUBER, _CROSSED, _MET, _RIGHT, _TOKENS, _HEAD = range(8)


class HeadMeter:
    """Sums over batches of windows; one for training, one for held-out episodes.

    Only actions that count are compared. Discrete ones are compared under teacher forcing.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        scales: Mapping[str, ActionScale],
        gripper: bool,
        discrete: ActionTokenizer | None,
    ) -> None:
        units = np.stack([scales[part.name].unit for part in parts])
        self._units = torch.from_numpy(units).float()
        self._gripper = gripper
        self._discrete = discrete
        self._sums: Tensor | None = None

    @property
    def logged(self) -> tuple[str, ...]:
        known = ("action_accuracy",) if self._discrete is not None else ("loss_arm", "loss_gripper")
        of_gripper = ("loss_gripper", "gripper_accuracy")
        names = (*known, "gripper_accuracy", "l1")
        return tuple(name for name in names if self._gripper or name not in of_gripper)

    @torch.no_grad()
    def add(self, outputs: Any, parts: Tensor, inputs: Mapping[str, Any]) -> None:
        """inputs: with actions [B, W, chunk, A] and valid [B, W, chunk]."""
        valid, labels = inputs["valid"], inputs["actions"].float()
        numbers = self._units.shape[1]
        head = labels.new_zeros(_HEAD)
        head[_SAMPLES], head[_STEPS] = len(valid), valid.sum()
        if self._discrete is None:
            arm = outputs.arm.float()
            logits = None if outputs.gripper_logits is None else outputs.gripper_logits.float()
            opens = None if logits is None else logits.squeeze(-1) > 0
            wanted = labels[..., :numbers]
            huber = functional.huber_loss(arm, wanted, reduction="none").mean(-1)
            head[_HUBER] = (huber * valid).sum()
            if logits is not None:
                crossed = functional.binary_cross_entropy_with_logits(
                    logits.squeeze(-1), labels[..., -1], reduction="none"
                )
                head[_CROSSED] = (crossed * valid).sum()
        else:
            arm, opens, wanted, right = self._decoded(outputs, inputs)
            head[_RIGHT], head[_TOKENS] = right.sum(), right.numel()
        if self._gripper and opens is not None:
            head[_MET] = ((opens == (labels[..., -1] > 0.5)) & valid).sum()
        error = (arm - wanted).abs() * valid[..., None]
        units = self._units.to(error)[parts.to(error.device)][:, None, None]
        columns = [(error * unit).sum(dim=(0, 1, 2)) for unit in (1, units)]
        sums = torch.cat([head, *columns]).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def _decoded(
        self, outputs: Any, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Decoded predictions at the places of the labels, and which ids are right."""
        assert self._discrete is not None
        labels, actions = inputs["labels"], inputs["actions"]
        found = torch.full_like(labels, IGNORE_INDEX)
        keep = labels != IGNORE_INDEX
        keep[..., 0] = False
        found[keep] = outputs.logits.argmax(dim=-1)
        # eos, which follows the actions, is no action.
        first, last = self._discrete.first_id, self._discrete.vocab_size
        is_action = keep & (labels >= first) & (labels < last)
        right = (found == labels)[is_action]
        mask = inputs["valid"][..., None].expand_as(actions)
        values, true = torch.zeros_like(actions), torch.zeros_like(actions)
        values[mask] = self._value(found[is_action]).to(values)
        true[mask] = self._value(labels[is_action]).to(true)
        numbers = self._units.shape[1]
        middle = (self._discrete.edges[0] + self._discrete.edges[-1]) / 2
        opens = values[..., -1] > middle if self._gripper else None
        return values[..., :numbers], opens, true[..., :numbers], right

    def _value(self, ids: Tensor) -> Tensor:
        assert self._discrete is not None
        centres = torch.from_numpy(self._discrete.centres).float().to(ids.device)
        return centres[(self._discrete.vocab_size - ids - 1).clamp(0, len(centres) - 1)]

    def take(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Means since the last call, over all ranks; `total` sums a tensor [n] over them.

        samples; loss_arm (Huber), loss_gripper (cross-entropy), gripper_accuracy; of discrete
        actions action_accuracy; l1 of the arm, normalised; error_<d>, in the robot's units.
        """
        numbers = self._units.shape[1]
        own = torch.zeros(_HEAD + 2 * numbers, dtype=torch.float64, device=device)
        if self._sums is not None:
            own += self._sums.to(device)
        self._sums = None
        sums = total(own).cpu().numpy()
        if not sums[_STEPS]:
            return {}
        normalised, physical = np.split(sums[_HEAD:] / sums[_STEPS], 2)
        found = {"samples": float(sums[_SAMPLES])}
        if self._discrete is None:
            found["loss_arm"] = float(sums[_HUBER] / sums[_STEPS])
            if self._gripper:
                found["loss_gripper"] = float(sums[_CROSSED] / sums[_STEPS])
        elif sums[_TOKENS]:
            found["action_accuracy"] = float(sums[_RIGHT] / sums[_TOKENS])
        if self._gripper:
            found["gripper_accuracy"] = float(sums[_MET] / sums[_STEPS])
        found["l1"] = float(normalised.mean())
        return found | {f"error_{at}": float(value) for at, value in enumerate(physical)}
