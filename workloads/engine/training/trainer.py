"""Tatara's mixin for any transformers Trainer: safe saves, agreed stops, no non-finite update.

`class LlmTrainer(RunTrainer, SFTTrainer)`: the mixin goes first. The loop stays the library's.
Private methods of it change without notice: `READ_IN` names the version they were read in.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from workloads.config.sections import Profile
from workloads.engine import distributed
from workloads.engine.hub.publish import Publisher
from workloads.engine.memory_errors import is_out_of_memory
from workloads.engine.pretrained.adapter import adapters_alone
from workloads.engine.training import checkpoints
from workloads.engine.training.callbacks import RunCallback
from workloads.engine.training.out_of_memory import out_of_memory
from workloads.errors import Stopped, TataraError
from workloads.run.events import Event, Phase
from workloads.run.integrity import PREFIX, SEAL, STAGING, sealed, step_of
from workloads.run.session import NOTHING_LOST, Session

READ_IN = MappingProxyType({"transformers": "5.17"})


def _numbers(rows: Sequence[int]) -> list[str]:
    return [f"row {row}" for row in rows]


@contextmanager
def trained_weights_kept(model: nn.Module) -> Iterator[None]:
    """Context that restores type and values of trained weights at its end.

    TRL (1.16) rounds adapters over a quantised base to bf16, where small updates vanish.
    """
    before = {weight: weight.data for weight in model.parameters() if weight.requires_grad}
    yield
    for weight, data in before.items():
        if weight.dtype != data.dtype:
            weight.data = data.to(weight.device)


def offloaded(
    model: nn.Module, report: Callable[[str], None]
) -> AbstractContextManager[object, bool | None]:
    """Context in which activations wait in host memory for the backward pass; nothing on a CPU."""
    if not torch.accelerator.is_available():
        report("train.activation_offloading changes nothing here: activations are in host memory")
        return nullcontext()
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    kept: AbstractContextManager[object, bool | None] = get_act_offloading_ctx_manager(model=model)
    return kept


class RunTrainer(Trainer):
    """Mixin for Trainer classes; takes `profile` and `session` besides the Trainer's arguments.

    places: names rows of the training data, as `file:line`, by the numbers in a batch's `row_ids`.
    """

    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        profile: Profile,
        session: Session,
        places: Callable[[Sequence[int]], list[str]] = _numbers,
        **kwargs: Any,
    ) -> None:
        self.profile, self.session, self.places = profile, session, places
        self.watch = RunCallback(profile, session)
        self.publisher = Publisher(profile, session)
        self._staging: Path | None = None
        self._step_rows: list[Any] = []
        self._nonfinite_steps = 0
        self._flops_of_one: int | None = None
        with trained_weights_kept(kwargs["model"]):
            super().__init__(*args, **kwargs)
        offloads = profile.train.activation_offloading
        self._kept_activations = (
            offloaded(self.model, session.report) if offloads else nullcontext()
        )
        self.add_callback(self.watch)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        promote_fsdp_on_cpu(self)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The library's schedules, and the cosine that falls once an epoch (`cosine_epochs`)."""
        if self.profile.optim.schedule == "cosine_epochs" and self.lr_scheduler is None:
            epochs = self.profile.train.epochs
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: rate_by_epochs(step, num_training_steps, epochs, warmup),
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def fit(self, resume: Path | None) -> None:
        """Train to the end; Stopped when all ranks have agreed to stop and a checkpoint is safe."""
        self.session.enter(Phase.TRAINING)
        try:
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = self.args.per_device_train_batch_size
            raise out_of_memory(self.profile, self.session, size, error) from error
        finally:
            self.publisher.close()
        step = self.state.global_step
        if self.watch.stopping:
            whole = self.state.max_steps
            raise Stopped(f"stopped at step {step} of {whole}; checkpoint-{step} saved")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The library's epoch, which would take one more step where a finished run is resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Turn a non-finite loss into non-finite gradients, which every rank then sees."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.model.training:
            return result
        if isinstance(result, tuple):
            return poisoned(result[0]), *result[1:]
        return poisoned(result)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._step_rows.append(inputs.pop("row_ids", None))
        self.watch.count(self._step_rows[-1], inputs.pop("tokens", 0))
        self.session.progress()
        with self._kept_activations:
            loss = super().training_step(model, inputs, *args, **kwargs)
        # The Trainer sums losses between two logs, and a NaN would never leave that sum. The
        # callback puts the gap right.
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The library's step, without inputs that only training counts; Stopped at a stop."""
        if distributed.agree(self.session.stopping):
            raise Stopped(NOTHING_LOST if self.state.global_step == 0 else "stopped in evaluation")
        counted = ("row_ids", "tokens")
        own = {name: value for name, value in inputs.items() if name not in counted}
        return super().prediction_step(model, own, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Skip the library's estimate, which would count all parameters in every micro-batch."""
        main = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if main is None:
            return 0
        if self._flops_of_one is None:
            self._flops_of_one = super().floating_point_ops(inputs) // main.numel()
        return self._flops_of_one * int(main.numel())

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip, and drop the gradients of a step whose norm is not finite.

        The norm is over all ranks, so all of them drop the same step. AdamW leaves a parameter
        without a gradient as it is, moments included. With fp16 the scaler does so first.
        """
        norm = super()._clip_grad_norm(model)
        rows, self._step_rows = self._step_rows, []
        if self._is_unfit(norm):
            self._drop_step(model, float(norm), rows)
        return norm

    def _is_unfit(self, norm: Any) -> bool:
        """Whether a step must not be applied; DeepSpeed has decided that by now."""
        if self.is_deepspeed_enabled:
            return not self.args.fp16 and bool(self.accelerator.optimizer_step_was_skipped)
        if bool(torch.isfinite(norm)):
            return False
        # Too high a scale makes infinities, which the scaler skips and corrects; a low one none.
        scaler = self.accelerator.scaler
        return scaler is None or scaler.get_scale() < 1

    def _drop_step(self, model: Any, norm: float, rows: list[Any]) -> None:
        for parameter in model.parameters():
            parameter.grad = None
        self._nonfinite_steps += 1
        self.watch.dropped += 1
        step = self.state.global_step + 1
        every = distributed.gather(
            [number for batch in rows for row in batch or [] for number in row]
        )
        self.session.event(
            Event.NONFINITE,
            step=step,
            grad_norm=norm,
            rows_by_rank=every,
            places_by_rank=[self.places(item) for item in every],
        )
        self.session.report(f"step {step}: non-finite loss or gradient; the step was not applied")
        if self._nonfinite_steps > self.profile.train.max_nonfinite_steps:
            raise TataraError(
                f"{self._nonfinite_steps} steps had a non-finite loss or gradient, the last one "
                f"step {step}; the weights hold none of them. Lower optim.learning_rate, use bf16, "
                "or look at the rows named in events.jsonl"
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The library's evaluation; a stop cuts it short, so that the step is saved in time."""
        try:
            with self.session.phase(Phase.EVALUATING):
                return super().evaluate(*args, **kwargs)
        except Stopped:
            if not self.is_in_train or self.state.global_step == 0:
                raise
            self.watch.stop_here(self.state, self.control)
            return {}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """The library's save, with adapters written without the base."""
        with adapters_alone(self.model) if hasattr(self.model, "peft_config") else nullcontext():
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save through the staging folder; a failed save keeps the older ones and goes on."""
        step = self.state.global_step
        if (self.session.run.checkpoints / f"{PREFIX}{step}" / SEAL).is_file():
            return  # a checkpoint without a seal is unusable: it makes room
        self._staging = self.session.run.checkpoints / STAGING
        try:
            with self.session.phase(Phase.SAVING):
                # Trainer's own, not TRL's, which writes a model card beside every checkpoint.
                saved = checkpoints.save(
                    self.session,
                    step,
                    lambda: Trainer._save_checkpoint(self, model, trial),
                    self.facts(),
                )
        except checkpoints.SaveFailed as error:
            self._report_failed_save(step, str(error))
        else:
            checkpoints.tidy(self.session, self.profile.checkpoints.keep_last, self.best_step())
            if self.state.global_step < self.state.max_steps:  # `finish` pushes the last one
                self.publisher.offer(saved)
        finally:
            self._staging = None

    def _report_failed_save(self, step: int, reason: str) -> None:
        self.session.event(Event.CHECKPOINT_FAILED, step=step, reason=reason)
        text = f"step {step}: the checkpoint could not be saved: {reason}; older ones are untouched"
        self.session.report(text)
        if self.control.should_training_stop:
            raise TataraError(f"{text}; free disk space, then resume")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise UserError for weights missing in a checkpoint, which would stay unchanged."""
        known = {*self.model.all_tied_weights_keys, *(self.model._keys_to_ignore_on_save or ())}
        lost = sorted(set(load_result.missing_keys) - known)
        if lost:
            raise TataraError(
                f"checkpoint: expected every weight of the model, found none for {len(lost)}, the "
                f"first {lost[0]}; resume an older checkpoint"
            )
        super()._issue_warnings_after_load(load_result)

    def facts(self) -> dict[str, Any]:
        """Facts that must stay equal for a resumed run to see the same samples in the same order.

        Of the profile: micro-batches halved for lack of memory do not change a step's samples.
        """
        world = distributed.world_size()
        return {
            "world_size": world,
            "per_device_batch_size": self.profile.train.per_device_batch_size,
            "accumulation_steps": self.profile.accumulation_steps(world),
            "seed": self.args.seed,
        }

    def check_resume(self, resume: Path) -> None:
        """Raise UserError where this attempt cannot go on from a checkpoint."""
        strategy = self.profile.strategy(distributed.world_size())
        checkpoints.same_shape(resume, self.facts(), strategy, self.session.report)

    def best_step(self) -> int | None:
        """The saved step with the lowest evaluation loss that is a number, if any has one."""
        if not self.profile.checkpoints.keep_best:
            return None
        saved = {step_of(path) for path in sealed(self.session.run.checkpoints)}
        rows = [row for row in self.state.log_history if "eval_loss" in row]
        # A NaN compares with nothing: it would win by its position.
        rows = [row for row in rows if row["step"] in saved and math.isfinite(row["eval_loss"])]
        return min(rows, key=lambda row: row["eval_loss"])["step"] if rows else None


def rate_by_epochs(step: int, steps: int, epochs: float, warmup: int) -> float:
    """Share of the peak learning rate at a step: a cosine over `epochs` stairs of equal length,
    after a linear warm-up."""
    # 1e-9: the quotient at an epoch's first step may be a rounding error below the whole number.
    epoch = int(step * epochs / max(1, steps) + 1e-9)
    share = 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))
    return share * min(1.0, step / warmup) if warmup else share


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss () itself; where it is not finite, one whose gradients are not either.

    An infinite loss can have finite gradients, and then only one rank would know. No value is
    brought to the host for this.
    """
    finite = torch.isfinite(loss.detach())
    return loss * torch.where(finite, 1.0, float("nan")).to(loss.dtype)


def promote_fsdp_on_cpu(trainer: Trainer) -> None:
    """Make accelerate shard on CPU too: it takes the FSDP plugin there and then runs plain DDP.

    Its AcceleratorState turns only multi-device types into FSDP (accelerate 1.15). Called once,
    right after the Accelerator has been made.
    """
    plugin_args = trainer.args.fsdp_plugin_args
    state = trainer.accelerator.state
    if plugin_args is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(**plugin_args)
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
