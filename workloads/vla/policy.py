"""Inference with a trained policy: images and an instruction in, actions out.

`tatara serve` and the evaluations in simulators use policies by the Protocol here. OpenVLA sees
each moment alone; policy heads remember an episode.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from workloads.config.sections import Model
from workloads.engine.hub.upload import FACTS
from workloads.engine.pretrained.base import locate_for_use
from workloads.engine.pretrained.files import Reporter, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run import Run


@dataclass(frozen=True)
class Observation:
    """One moment: images uint8 [H, W, 3] RGB by camera, the task in words, and, where the policy
    takes it, the robot's state [P] in the robot's units."""

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None


class Policy(Protocol):
    """A policy for serving and evaluation; `act` returns actions in the robot's units.

    name: for people; cameras: those of its training, in order.
    """

    name: str
    cameras: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """The model's device."""

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """Names of the datasets whose statistics it has."""

    @property
    def state_size(self) -> int | None:
        """Size of a state; None for a policy that takes none."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """[chunk, A] of a policy that predicts several steps, else [A]; of its first dataset."""

    @property
    def is_chunked(self) -> bool:
        """Whether it predicts several steps at once."""

    @property
    def remembers(self) -> bool:
        """Whether its actions depend on earlier moments of an episode."""

    @property
    def binary(self) -> tuple[int, ...]:
        """The numbers of an action that have two values only, such as a gripper's."""

    def action_statistics(self, unnorm_key: str | None) -> Mapping[str, Any]:
        """Numbers of a dataset's actions, such as their mean; UserError for an unknown key."""

    def new_memory(self) -> Any:
        """The memory of a new episode; None for a policy without memory."""

    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """B observations → float64 [B, chunk, A]; the chunk of a policy with tokens is 1.

        unnorm_key: the dataset whose statistics count, needed where there are several. memories:
        one an observation, of `new_memory`, which stores the observation; without them each is the
        first of an episode. Raises UserError for an unknown key, a missing camera, and a state of
        another shape than in training; memories are unchanged then.
        """

    def untrained(self, run: Run | None, report: Reporter) -> "Policy":
        """The same policy with its run's initial weights, or random ones without a run."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        attn: str = "auto",
        device: str | torch.device | None = None,
        four_bit: bool = False,
        report: Reporter = print,
    ) -> "Policy":
        """Load a folder of `tatara export`, whole or an adapter, or a published checkpoint.

        dtype: by default the one it was exported in, float32 on a CPU. attn: sdpa, eager or
        flash_attention_2; auto is sdpa, or what the policy needs. device: by default the GPU where
        there is one. four_bit: hold the base in nf4, for GPUs of 16 GB. Raises UserError
        where the folder is no policy.
        """
        from workloads.vla.family import family_named

        # Missing files of a local folder are reported by its family's reader.
        folder = Path(path)
        if not folder.is_dir():
            folder, _ = locate_for_use(Model(name=os.fspath(path)), report)
        facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        family = family_named(_kind(folder, facts), folder)
        return family.load_policy(folder, facts, str(path), dtype, attn, place, four_bit, report)


def _kind(folder: Path, facts: Mapping[str, Any]) -> str:
    """The family of a folder's policy; for an adapter that of its run."""
    if is_adapter(folder):
        return str(facts.get("family", "openvla"))
    return str(read_json(folder / "config.json").get("model_type"))


def observed(cameras: Sequence[str], observation: Observation) -> list[np.ndarray]:
    """The images of these cameras, uint8 [H, W, 3] each.

    Raises UserError where an image or the instruction is missing.
    """
    if not observation.instruction.strip():
        raise UserError("expected an instruction, found none; send one for the robot")
    missing = [name for name in cameras if name not in observation.images]
    if missing:
        raise UserError(
            f"expected images of the cameras {', '.join(cameras)}, found none of "
            f"{', '.join(missing)}; send one of each"
        )
    return [observation.images[name] for name in cameras]


def checked_state(state: np.ndarray | None, size: int) -> np.ndarray:
    """The state as float32 [size], in the robot's units.

    Raises UserError where it is missing, of another shape, or not finite.
    """
    wanted = f"expected a state of {size} numbers, the robot's own"
    if state is None:
        raise UserError(f"{wanted}, found none; send it beside the images")
    if np.shape(state) != (size,):
        raise UserError(f"{wanted}, found shape {list(np.shape(state))}; send all joints")
    if not np.isfinite(state).all():
        raise UserError(f"{wanted}, found some that are not finite; send finite numbers")
    # In training's dtype: recordings are float32.
    return np.asarray(state, dtype=np.float32)
