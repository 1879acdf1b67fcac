"""What Tatara adds to transformers' Trainer for policies, all that it overrides there.

Private methods of a library change without notice: `READ_IN` names the version they were read in.
"""

import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from workloads.data.tfrecord import Damage
from workloads.engine.training.trainer import RunTrainer
from workloads.run.events import Event
from workloads.run.session import Session
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources
from workloads.vla.data.steps import Steps
from workloads.vla.evaluate.action_errors import ActionMeter
from workloads.vla.export import write_statistics
from workloads.vla.loading import plain
from workloads.vla.openvla.layout import OFT_WEIGHTS, is_head
from workloads.vla.openvla.modeling import OpenVLA

READ_IN = MappingProxyType({"transformers": "5.17"})


class PolicyTrainer(Trainer):
    """transformers' trainer for batches with actions: their errors counted, their epochs told."""

    meters: dict[bool, ActionMeter]
    session: Session

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The library's own, which would take the records of what is damaged apart."""
        inputs = dict(inputs)
        damage = inputs.pop("damage")
        return {**super()._prepare_inputs(inputs), "damage": damage}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss; actions are compared on the way."""
        inputs = dict(inputs)
        parts = inputs.pop("parts")
        self.note_damage(inputs.pop("damage"))
        for name in ("row_ids", "tokens"):
            inputs.pop(name, None)
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self.meters[self.model.training].add(outputs, parts, inputs.get("actions"))
        return (loss, outputs) if return_outputs else loss

    def note_damage(self, damage: list[Damage]) -> None:
        """Tell of images that could not be read; UserError past the budget of their dataset."""
        for item in damage:
            for part in self.train_dataset.parts:
                is_new = item not in part.dataset.damage
                if is_new and Path(item.file).is_relative_to(part.dataset.path):
                    self.session.run.event(Event.DAMAGED_RECORD, text=str(item))
                    self.session.tell(f"left out, and another step taken for it: {item}")
                    part.dataset.report([item])


class VlaTrainer(RunTrainer, PolicyTrainer):
    """The vla workload's trainer."""

    def __init__(self, *args: Any, profile: VlaConfig, sources: Sources, **kwargs: Any) -> None:
        model = plain(kwargs["model"])
        self.sources = sources
        steps = {True: kwargs["train_dataset"], False: kwargs["eval_dataset"]}
        self.meters = {
            training: ActionMeter(
                model.action_tokenizer, sources.statistics, some.parts, profile.chunk
            )
            for training, some in steps.items()
            if some is not None
        }
        super().__init__(*args, profile=profile, **kwargs)
        # An L1 loss is a mean over values of which every sample has as many.
        self.model_accepts_loss_kwargs = not profile.regresses
        self.add_callback(Epochs(self.train_dataset))
        self._since = time.monotonic()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what the meters have; all ranks are here together."""
        if "eval_loss" in logs:
            values = self._measured(training=False)
            values.pop("samples", None)
            logs |= {f"eval_{name}": value for name, value in values.items()}
        elif "loss" in logs:
            values = self._measured(training=True)
            seconds, self._since = time.monotonic() - self._since, time.monotonic()
            logs |= {name: values[name] for name in ("action_accuracy", "l1") if name in values}
            logs["samples_per_second"] = values.get("samples", 0.0) / max(seconds, 1e-9)
        super().log(logs, *args, **kwargs)

    def _measured(self, training: bool) -> dict[str, float]:
        return self.meters[training].take(
            lambda sums: self.accelerator.reduce(sums, "sum"), self.args.device
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "data": self.sources.fingerprint}

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """The library's own, with the statistics that the weights belong to, and the OFT head."""
        super().save_model(output_dir, *args, **kwargs)
        if not self.args.should_save or output_dir is None:
            return
        # Shards are written after this, and nothing before it makes the folder.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_statistics(Path(output_dir), self.sources.statistics)
        model = plain(self.model)
        if self.profile.adapter.method != "full" and not self.is_fsdp_enabled and model.heads():
            save_file(_head(model), Path(output_dir) / OFT_WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """The library's own, and the OFT head, which lies in a file of its own."""
        file = Path(resume_from_checkpoint) / OFT_WEIGHTS
        self._head_apart = file.is_file()
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._head_apart:
            plain(self.model if model is None else model).load_state_dict(
                load_file(file), strict=False
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A head that lies in a file of its own is not lost."""
        lost = [name for name in load_result.missing_keys if not is_head(name)]
        if self._head_apart:
            load_result = load_result._replace(missing_keys=lost)
        super()._issue_warnings_after_load(load_result)


class Epochs(TrainerCallback):
    """Tells the data set which epoch comes, before its workers are made."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that goes on in the middle of an epoch is between two whole numbers.
        self.steps.epoch = int((state.epoch or 0) + 1e-6)


def _head(model: OpenVLA) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: value.detach().contiguous() for name, value in state.items() if is_head(name)}


__all__ = ["VlaTrainer"]
