"""The interface of a policy family for training, export and planning, with two families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workloads.config.sections import Model
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Part, Sources
from workloads.vla.policy import Policy
from workloads.vla.processing import ImageProcessor

if TYPE_CHECKING:
    from workloads.engine.export.exporter import Exporter
    from workloads.engine.fake_step.step import FakeStep, Fields

FAMILIES = ("openvla", "robovlms")


class Meter(Protocol):
    """Errors of predicted actions, summed over batches on the model's device."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Measures in rows of training; rows of evaluation have all."""

    def add(self, outputs: Any, parts: Tensor, inputs: Mapping[str, Any]) -> None:
        """outputs: of the model; parts int64 [B]: the dataset of each sample; inputs: the batch."""

    def take(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Means since the last call, over all ranks; `total` sums a tensor [n] over them."""


class EpochSamples(Protocol):
    """A map-style dataset of samples, whose `epoch` is set before each."""

    parts: tuple[Part, ...]
    epoch: int

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Samples:
    """Datasets of a trainer.

    collate: samples to a batch; meters: for training (True) and for held-out samples; in_order: the
    dataset already is in its epoch's order, divided among `streams` readers.
    """

    train: EpochSamples
    held_out: EpochSamples | None
    collate: Callable[[Any], dict[str, Any]]
    meters: Mapping[bool, Meter]
    in_order: bool = False


class Family(Protocol):
    """One kind of policy.

    labels: the batch's entry for the loss; head_file: file of the head's weights beside an
    adapter's.
    """

    labels: str
    head_file: str

    @property
    def exporter(self) -> "Exporter[VlaConfig]":
        """The exporter of this family."""

    def read(self, model: Model, folder: Path) -> Any:
        """Read a base's config, for `engine.pretrained.base.resolve`."""

    def load(
        self, config: VlaConfig, base: Base[Any], sources: Sources, report: Reporter
    ) -> PreTrainedModel:
        """Load the base with the profile's head, without an adapter."""

    def trainable(self, model: PreTrainedModel, config: VlaConfig) -> nn.Module:
        """Prepare the model for training: whole, or under an adapter with the head beside it."""

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head, not to the base or an adapter."""

    def keep_skeleton(self, base: Base[Any], model: PreTrainedModel, run: Run) -> None:
        """Copy the base's files, except weights, into the run."""

    def processor(self, base: Base[Any]) -> ImageProcessor:
        """The image processor of the model."""

    def samples(
        self,
        config: VlaConfig,
        base: Base[Any],
        model: PreTrainedModel,
        sources: Sources,
        processor: ImageProcessor,
    ) -> Samples:
        """The datasets of a training."""

    def method(self, config: VlaConfig) -> str:
        """Short description of how actions are predicted."""

    def load_policy(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        name: str,
        dtype: torch.dtype | None,
        attn: str,
        device: torch.device,
        four_bit: bool,
        report: Reporter,
    ) -> Policy:
        """Load an exported policy; facts: those of its tatara.json."""

    def fake_step(self, config: VlaConfig, fields: "Fields") -> "FakeStep":
        """Build one training step on fake tensors; fields: those of the base's config.json."""


def family_of(config: VlaConfig) -> Family:
    """The family of a profile's policy."""
    return _family("robovlms" if config.action_head.is_policy_head else "openvla")


def family_named(kind: str, folder: Path) -> Family:
    """The family that a folder's config.json names.

    Raises UserError for an unknown one.
    """
    if kind not in FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: expected model_type of {', '.join(FAMILIES)}, found "
            f"{kind!r}; name an exported policy"
        )
    return _family(kind)


def _family(kind: str) -> Family:
    if kind == "openvla":
        from workloads.vla.openvla.family import OpenVLAFamily

        return OpenVLAFamily()
    from workloads.vla.robovlms.family import RoboVLMsFamily

    return RoboVLMsFamily()
