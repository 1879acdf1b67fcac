"""Callbacks at the end of a step: the agreed stop, metrics, progress."""

import math
import time
import zlib
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workloads.config.sections import Profile
from workloads.engine import distributed
from workloads.engine.training.memory import memory_facts, start_measuring
from workloads.engine.training.trackers import Trackers, trackers
from workloads.processes import resident_bytes
from workloads.run import write_manifest
from workloads.run.events import Event
from workloads.run.session import Session

# Keys of the Trainer's logs that we write under other names, or do not need.
_DROPPED = ("total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")


class RunCallback(TrainerCallback):
    """Connects a Trainer to its run."""

    def __init__(self, profile: Profile, session: Session) -> None:
        self.profile, self.session = profile, session
        self.stopping = False
        self.tokens = 0
        self.batches = 0
        self.dropped = 0
        self._since = time.monotonic()
        self._since_step = 0
        self._shown_at = 0.0
        self._memory, self._weighed = 0, -math.inf
        self.trackers = Trackers(session, {})

    def count(self, rows: Any, tokens: int) -> None:
        """Note one micro-batch: its tokens, and a digest of its rows.

        The digest of a step is a sum over its rows, so that it does not depend on how ranks and
        micro-batches split them.
        """
        self.tokens += tokens
        self.batches += sum(zlib.crc32(str(row).encode()) for row in rows or ())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._since, self._since_step = time.monotonic(), state.global_step
        dump = self.profile.model_dump(mode="json")
        self.trackers = trackers(self.profile.tracking, self.session, dump, state.global_step)
        start_measuring()
        optimizer, loader = kwargs["optimizer"], kwargs["train_dataloader"]
        before = take_rate(optimizer, kwargs["lr_scheduler"], args.learning_rate)
        if before is not None:
            rate = f"{args.learning_rate:g}"
            self.session.report(f"learning rate {rate} from here on; the checkpoint has {before:g}")
        if (rates := follow_schedule(optimizer, kwargs["lr_scheduler"])) is not None:
            now, then = rates
            self.session.report(
                f"learning rate {now:g} from step {state.global_step + 1} on, as the schedule is "
                f"set now; the checkpoint has {then:g}"
            )
        self.session.event(
            Event.TRAINING,
            step=state.global_step,
            max_steps=state.max_steps,
            world_size=args.world_size,
            strategy=self.profile.strategy(args.world_size),
            **_parameters(kwargs["model"]),
            accumulation_steps=args.gradient_accumulation_steps,
            per_device_batch_size=loader.total_batch_size // max(1, args.world_size),
            param_groups=[
                {
                    name: group[name]
                    for name in ("lr", "initial_lr", "weight_decay")
                    if name in group
                }
                for group in optimizer.param_groups
            ],
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.progress(step=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop all ranks at the same step: they save it and leave the loop."""
        self.session.progress(step=state.global_step)
        if distributed.agree(self.session.stopping) and state.global_step < state.max_steps:
            self.stop_here(state, control)

    def stop_here(self, state: TrainerState, control: TrainerControl) -> None:
        """Save the step that has just ended, and leave the loop; called on all ranks."""
        if self.stopping:
            return
        self.stopping = True
        self.session.event(Event.STOP_REQUESTED, step=state.global_step)
        control.should_save = True
        control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Otherwise `finish` closes them, after it has handed over the report.
        if self.stopping or not self.profile.tracking.keeps_artifacts:
            self.trackers.close()
        if self.session.is_main:
            facts = memory_facts(self.profile, args.world_size)
            write_manifest(self.session.run, {"memory": facts})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        tokens, batches = distributed.totals([self.tokens, self.batches])
        self.tokens = self.batches = 0
        if not self.session.is_main or logs is None or "train_runtime" in logs:
            return
        row = {name: value for name, value in logs.items() if name not in _DROPPED}
        if "loss" in row:
            row |= {"batches": batches, **self._loss(state.global_step, row["loss"])}
            row |= self._speed(state.global_step, tokens)
        write = self.session.run.metric if "loss" in row else self.session.run.eval_metric
        write({"step": state.global_step, "epoch": state.epoch, **row})
        self.trackers.write(state.global_step, row)
        self._show(state, row)

    def _loss(self, step: int, mean: float) -> dict[str, Any]:
        """Mean loss over the applied steps; NaN where there is none."""
        dropped, self.dropped = self.dropped, 0
        if not dropped:
            return {"loss": mean}
        applied = step - self._since_step - dropped
        loss = mean * (applied + dropped) / applied if applied > 0 else math.nan
        return {"loss": loss, "dropped_steps": dropped}

    def _speed(self, step: int, tokens: int) -> dict[str, Any]:
        seconds = max(1e-9, time.monotonic() - self._since)
        steps = max(1, step - self._since_step)
        self._since, self._since_step = time.monotonic(), step
        if self._since - self._weighed >= 1.0:  # short steps would spend too much time on it
            self._memory, self._weighed = resident_bytes(), self._since
        speed = {"seconds_per_step": seconds / steps, "memory": self._memory}
        return speed | ({"tokens_per_second": tokens / seconds} if tokens else {})

    def _show(self, state: TrainerState, row: dict[str, Any]) -> None:
        """Show progress: one line on a terminal, a line now and then elsewhere."""
        last = state.global_step >= state.max_steps
        live = self.session.console.isatty()
        if not last and time.monotonic() - self._shown_at < (0.2 if live else 5.0):
            return
        self._shown_at = time.monotonic()
        line = progress_line(state.global_step, state.max_steps, row)
        end = "\n" if last or not live else ""
        print(f"\r\x1b[K{line}" if live else line, end=end, file=self.session.console, flush=True)


def take_rate(optimizer: Any, scheduler: Any, rate: float) -> float | None:
    """Set the optimizer to the current peak rate; returns the checkpoint's rate if it differs.

    A loaded optimizer and its schedule bring their own rate, which would win in silence. Equal
    rates are not touched, so that a resumed run stays identical.
    """
    before = {group.get("initial_lr", rate) for group in optimizer.param_groups}
    if all(math.isclose(item, rate) for item in before):
        return None
    for group in optimizer.param_groups:
        # Every schedule is a multiple of the peak.
        group["lr"] *= rate / group["initial_lr"]
        group["initial_lr"] = rate
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps some
    inner.base_lrs = [rate] * len(inner.base_lrs)
    return float(max(before))


def follow_schedule(optimizer: Any, scheduler: Any) -> tuple[float, float] | None:
    """Set the next step's rate by the current schedule; returns it and the checkpoint's, if other.

    A loaded optimizer brings the last rate of its own schedule, which would hold for one more step.
    Equal rates are not touched.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    lambdas = getattr(inner, "lr_lambdas", None)
    if lambdas is None:
        return None
    pairs = zip(optimizer.param_groups, inner.base_lrs, lambdas, strict=True)
    rates = [(group, base * factor(inner.last_epoch)) for group, base, factor in pairs]
    changed = [
        (float(now), float(group["lr"]))
        for group, now in rates
        if not math.isclose(now, group["lr"], rel_tol=1e-6, abs_tol=1e-15)
    ]
    if not changed:
        return None
    for group, now in rates:
        group["lr"] = now
    inner._last_lr = [now for _, now in rates]
    return max(changed)


def _parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of all parameters, of trained ones, and of those really sharded."""
    every = list(model.parameters())
    return {
        "parameters": sum(item.numel() for item in every),
        "trained_parameters": sum(item.numel() for item in every if item.requires_grad),
        "sharded_parameters": sum(item.numel() for item in every if isinstance(item, DTensor)),
    }


def progress_line(step: int, steps: int, row: dict[str, Any]) -> str:
    """`step 12/80 loss 2.41 …` with the values of the row; rewards come first."""
    parts = [f"step {step}/{steps}"]
    # TRL names them rewards/accuracy/mean; the loss beside them says little.
    rewards = [name for name in row if name.startswith("rewards/") and name.endswith("/mean")]
    names = {"reward": "reward"}
    if len(rewards) > 1:
        names |= {name: name.split("/")[1].rpartition(":")[2] for name in rewards}
    names |= {"loss": "loss", "eval_loss": "held-out loss", "learning_rate": "lr"}
    for name, label in names.items():
        value = row.get(name)
        if isinstance(value, int | float):
            parts.append(f"{label} {value:.4g}")
    seconds = row.get("seconds_per_step")
    if seconds:
        left = math.ceil((steps - step) * seconds)
        parts.append(f"{seconds:.2f} s/step, {left // 60}:{left % 60:02d} left")
    return "  ".join(parts)
