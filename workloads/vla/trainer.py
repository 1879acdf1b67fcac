"""Everything that Tatara adds to transformers' Trainer for policies, or overrides in it.

Private methods of a library change without notice: `READ_IN` names the version they were read in.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import SequentialSampler
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
from workloads.vla.family import EpochSamples, Meter, Samples, family_of
from workloads.vla.statistics import write_statistics

READ_IN = MappingProxyType({"transformers": "5.17"})


class PolicyTrainer(Trainer):
    """transformers' trainer for batches with actions: counts errors and sets the epoch."""

    meters: Mapping[bool, Meter]
    session: Session

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The library's method, without records of damage, which it would take apart."""
        inputs = dict(inputs)
        damage = inputs.pop("damage")
        return {**super()._prepare_inputs(inputs), "damage": damage}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss; also compares actions."""
        inputs = dict(inputs)
        parts = inputs.pop("parts")
        self.note_damage(inputs.pop("damage"))
        for name in ("row_ids", "tokens"):
            inputs.pop(name, None)
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self.meters[self.model.training].add(outputs, parts, inputs)
        return (loss, outputs) if return_outputs else loss

    def note_damage(self, damage: list[Damage]) -> None:
        """Report unreadable images; raises UserError past the budget of their dataset."""
        for item in damage:
            for part in self.train_dataset.parts:
                is_new = item not in part.dataset.damage
                if is_new and Path(item.file).is_relative_to(part.dataset.path):
                    self.session.run.event(Event.DAMAGED_RECORD, text=str(item))
                    self.session.report(f"left out, and another step taken for it: {item}")
                    part.dataset.report([item])


class VlaTrainer(RunTrainer, PolicyTrainer):
    """The vla workload's trainer."""

    def __init__(
        self, *args: Any, profile: VlaConfig, sources: Sources, samples: Samples, **kwargs: Any
    ) -> None:
        self.family = family_of(profile)
        self.sources, self.samples, self.meters = sources, samples, samples.meters
        super().__init__(
            *args,
            profile=profile,
            train_dataset=samples.train,
            eval_dataset=samples.held_out,
            data_collator=samples.collate,
            **kwargs,
        )
        # A loss of numbers is a mean over values, not a sum over tokens; that of discrete actions
        # of a window is one too.
        of_head = profile.action_head.is_policy_head
        self.model_accepts_loss_kwargs = not (profile.regresses or of_head)
        self.add_callback(Epochs(samples.train))
        self._since = time.monotonic()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the meters' values; all ranks call it together."""
        if "eval_loss" in logs:
            values = self._measured(training=False)
            values.pop("samples", None)
            logs |= {f"eval_{name}": value for name, value in values.items()}
        elif "loss" in logs:
            values = self._measured(training=True)
            seconds, self._since = time.monotonic() - self._since, time.monotonic()
            logged = self.meters[True].logged
            logs |= {name: values[name] for name in logged if name in values}
            logs["samples_per_second"] = values.get("samples", 0.0) / max(seconds, 1e-9)
        super().log(logs, *args, **kwargs)

    def _measured(self, training: bool) -> dict[str, float]:
        return self.meters[training].take(
            lambda sums: self.accelerator.reduce(sums, "sum"), self.args.device
        )

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The library's sampler, except for samples that already are in their epoch's order."""
        if self.samples.in_order:
            return SequentialSampler(self.samples.train)
        return super()._get_train_sampler(*args, **kwargs)

    def facts(self) -> dict[str, Any]:
        found = {**super().facts(), "data": self.sources.fingerprint}
        # Readers of windows share the samples: another number of readers sees another order.
        return found | ({"workers": self.profile.train.workers} if self.samples.in_order else {})

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """The library's save, with the statistics of the weights, and the head."""
        super().save_model(output_dir, *args, **kwargs)
        if not self.args.should_save or output_dir is None:
            return
        # Shards are written after this, and the folder does not exist before.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_statistics(Path(output_dir), self.sources.statistics)
        head = self._head()
        if self.profile.adapter.method != "full" and not self.is_fsdp_enabled and head:
            file = Path(output_dir) / self.family.head_file
            save_file(head, file, metadata={"format": "pt"})

    def _head(self) -> dict[str, torch.Tensor]:
        state = base_model(self.model).state_dict()
        return {
            name: value.detach().contiguous()
            for name, value in state.items()
            if self.family.is_head(name)
        }

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """The library's loading, and the head, which has a file of its own."""
        file = Path(resume_from_checkpoint) / self.family.head_file
        self._head_apart = file.is_file()
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._head_apart:
            inside = base_model(self.model if model is None else model)
            inside.load_state_dict(load_file(file), strict=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn of a missing head, which has a file of its own."""
        lost = [name for name in load_result.missing_keys if not self.family.is_head(name)]
        if self._head_apart:
            load_result = load_result._replace(missing_keys=lost)
        super()._issue_warnings_after_load(load_result)


def base_model(model: nn.Module) -> nn.Module:
    """The policy inside of an adapter's wrapper."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


class Epochs(TrainerCallback):
    """Sets the dataset's epoch before its workers are started."""

    def __init__(self, samples: EpochSamples) -> None:
        self.samples = samples

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that resumes in the middle of an epoch has a fractional epoch.
        self.samples.epoch = int((state.epoch or 0) + 1e-6)


__all__ = ["VlaTrainer"]
