"""What Tatara overrides in TRL's GRPOTrainer and transformers' Trainer for this workload.

Private methods of a library change without notice: `READ_IN` names the versions they were read in,
and `tests/smoke/test_grpo_train.py` trains with each of them.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOTrainer

from workloads.engine import distributed
from workloads.engine.memory_errors import is_out_of_memory
from workloads.engine.pretrained.chat import fixed
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import Retry, Stopped, TataraError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.learning_signal import LearningSignal, SignalCallback
from workloads.grpo.model import placeholders, tokenizer_of
from workloads.grpo.rewards.plug_ins import adapted
from workloads.grpo.rewards.scoring import Scorer, WeightedReward, for_trainer
from workloads.grpo.rollouts import engine
from workloads.grpo.rollouts.rollouts import Rollout, RolloutLog
from workloads.run.best import best_step
from workloads.run.events import Phase
from workloads.run.integrity import sealed, step_of

READ_IN = MappingProxyType({"trl": "1.16", "transformers": "5.17"})

_REFERENCE = "ref"
_MOVED_REFERENCE = "reference.pt"


@dataclass
class Handed:
    """Values that one hook of a step leaves for a later one.

    completions: this rank's, as the rewards saw them, for the log of rollouts. reward_failed: on
    any rank, so that `fit` saves the last good step. random_state: after the last step.
    """

    completions: list[Any] = field(default_factory=list)
    reward_failed: bool = False
    random_state: dict[str, Any] = field(default_factory=dict)


class BehindStep(TrainerCallback):
    """Calls `act` after each optimizer step, before its checkpoint."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._act()


def random_state() -> dict[str, Any]:
    """The state of all generators that sampling draws from."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
    state["cpu"] = torch.random.get_rng_state()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the generators to a stored state; nothing for None."""
    if not state:
        return
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.random.set_rng_state_all(state["cuda"])


class ByEpoch(Sampler[int]):
    """Sampler with a different order in every epoch, determined by seed and epoch alone.

    TRL's own sampler counts its calls, and would give a resumed run the first epoch's order again.
    Rows come in chunks of `prompts`; each row `group` times in a row, each chunk `repeats` times,
    because TRL reads it again for every micro-batch of a step.
    """

    def __init__(self, rows: int, prompts: int, group: int, repeats: int, seed: int) -> None:
        self.rows, self.prompts, self.group, self.repeats = rows, prompts, group, repeats
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # A prime apart: seeds 0 and 1 share no epoch's order.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        # Whole chunks only: each rank would wait for the groups of a partial one.
        for start in range(0, self.rows - self.prompts + 1, self.prompts):
            chunk = order[start : start + self.prompts]
            for _ in range(self.repeats):
                yield from (row for row in chunk for _ in range(self.group))

    def __len__(self) -> int:
        return self.rows // self.prompts * self.prompts * self.group * self.repeats


class LoadsByName(Trainer):
    """Mixin for Trainer classes that resume whole models, vision-language models among them.

    `save_pretrained` writes many of these under the names that older versions used. The library's
    own loading matches names exactly and skips unknown ones: a resumed run would continue from its
    first weights.
    """

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load through from_pretrained, which knows both names; others as the library."""
        model = self.model if model is None else model
        # Shards and adapters are stored under the names of the modules.
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load: Any = type(model).from_pretrained
        whole, found = load(
            Path(resume_from_checkpoint),
            dtype=next(model.parameters()).dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            raise TataraError(
                f"{resume_from_checkpoint}: expected every weight of the model, found none for "
                f"{len(missing)}, the first {missing[0]}; resume an older checkpoint"
            )
        model.load_state_dict(whole.state_dict())


class GrpoTrainer(LoadsByName, RunTrainer, GRPOTrainer):
    """The grpo workload's trainer.

    A checkpoint lies between two optimizer steps. Where the next one would learn from existing
    completions (`num_iterations`, `steps_per_generation`), the checkpoint holds them;
    else a resumed run samples the same completions again where the engine is transformers. vLLM's
    own random state is not part of it.
    """

    profile: GrpoConfig

    def __init__(
        self,
        *args: Any,
        profile: GrpoConfig,
        log: RolloutLog,
        scorer: Scorer,
        ask_held_out: Callable[[Any, int], None],
        **kwargs: Any,
    ) -> None:
        self.rollout_log, self.scorer, self._ask_held_out = log, scorer, ask_held_out
        self.handed = Handed()
        super().__init__(*args, profile=profile, **kwargs)
        # Not among TRL's arguments, which are written as JSON: one of them is a function.
        own: dict[str, Any] = self.args.chat_template_kwargs or {}
        self.chat_template_kwargs = {**fixed(self.processing_class), **own}
        self._take_environment_rewards()
        self.signal = LearningSignal(profile, self.session)
        self.add_callback(SignalCallback(self.signal, self.watch))
        self.add_callback(BehindStep(self._evaluate_held_out))
        # TRL sets a collator of its own, but RunTrainer needs the rows of a batch.
        self.data_collator = collate

    def _take_environment_rewards(self) -> None:
        """Log and guard an environment's get_reward, which TRL adds after ours, like ours."""
        for place in range(len(self.scorer.rewards), len(self.reward_funcs)):
            name = self.reward_func_names[place]
            reward = WeightedReward(name, adapted(name, self.reward_funcs[place]))
            self.scorer.rewards = (*self.scorer.rewards, reward)
            self.reward_funcs[place] = for_trainer(reward, self.scorer)

    def fit(self, resume: Path | None) -> None:
        """Train to the end. Raises Stopped, or for lack of memory an error with advice for GRPO."""
        try:
            super().fit(resume)
        except Stopped as error:
            reason = f": {self.signal.reason}" if self.signal.stops else ""
            raise Stopped(f"{error}{reason}") from error
        except TataraError as error:
            if self.handed.reward_failed:
                self._save_last_good()
            is_final = not isinstance(error, Retry)
            if is_final and is_out_of_memory(error.__cause__):
                ladder = "\n  ".join([str(error), *engine.memory_ladder(self.profile)])
                raise TataraError(ladder) from error
            raise

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "num_generations": self.num_generations,
            "num_iterations": self.num_iterations,
            "steps_per_generation": self.args.steps_per_generation,
        }

    def _evaluate_held_out(self) -> None:
        """Evaluate held-out rows where due; the random state of sampling is restored."""
        self.handed.random_state = random_state()
        every, step = self.profile.evaluation.every_steps, self.state.global_step
        if every and step % every == 0 and step < self.state.max_steps:
            try:
                self._ask_held_out(self.model, step)
            except Stopped:  # of all ranks
                self.watch.stop_here(self.state, self.control)
            set_random_state(self.handed.random_state)

    def _save_last_good(self) -> None:
        """Save the last good step, from before the completions whose reward failed."""
        if self.state.global_step > 0:
            set_random_state(self.handed.random_state)
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.session.report(
                f"checkpoint-{self.state.global_step} saved: `--resume` goes on there"
            )

    def best_step(self) -> int | None:
        """The saved step with the highest weighted reward on held-out rows."""
        if not self.profile.checkpoints.keep_best or not self.profile.evaluation.every_steps:
            return None
        return best_step(
            self.session.run, {step_of(path) for path in sealed(self.session.run.checkpoints)}
        )

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        rows = len(dataset if dataset is not None else self.train_dataset)
        prompts = self.args.generation_batch_size // self.num_generations
        repeats = self.num_iterations * self.args.steps_per_generation
        return ByEpoch(rows, prompts, self.num_generations, repeats, self.args.seed)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        return super()._prepare_inputs(generation_batch["rows"])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.session.phase(Phase.GENERATING), engine.named_failures(self.profile):
            output = super()._generate_and_score_completions(inputs)
        masks = output["prompt_mask"].sum() + output["completion_mask"].sum()
        self.watch.tokens += int(masks)
        if self.session.is_main:
            self._keep_rollouts(inputs, output["advantages"].tolist())
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """TRL's own, with no images for a row of text: processors stumble over its None.

        Pixels become tensors, as which TRL's loop of tools expects them of every processor.
        """
        ids, images, fields = super()._tokenize_prompts(prompts)
        fields = {name: _as_tensor(value) for name, value in fields.items()}
        return ids, images and [shown or [] for shown in images], fields

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        if self.profile.generation.engine != "transformers":
            images = images and [shown or None for shown in images]  # vLLM expects None
        if self.profile.generation.engine == "vllm_colocate":
            tokens = placeholders(self.processing_class)
            known = tokenizer_of(self.processing_class).convert_tokens_to_ids(tokens)
            prompt_ids = engine.one_for_each_image(prompt_ids, known, images)
        result = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        self.session.progress()
        return result

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """TRL's rewards; where one fails on one rank, all ranks stop at the same step."""
        self.handed.completions = list(completions)
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # Before anything is raised: a rank that leaves alone would leave the others waiting.
        self.handed.reward_failed = distributed.agree(self.scorer.problem is not None)
        distributed.all_or_none(self.scorer.problem, "rewards")
        return gathered

    def _keep_rollouts(self, inputs: Sequence[dict[str, Any]], advantages: list[float]) -> None:
        step = self.state.global_step + 1
        if not self.rollout_log.wants(step):
            return
        rollouts = [
            Rollout(
                row["place"],
                row["prompt"],
                completion,
                row["solution"],
                {name: found[place] for name, found in self.scorer.last.items()},
                self._total(place),
                advantage,
                row.get("images", [row.get("image")]),
            )
            for place, (row, completion, advantage) in enumerate(
                zip(inputs, self.handed.completions, advantages, strict=True)
            )
        ]
        self.rollout_log.write(step, rollouts)

    def _total(self, place: int) -> float:
        """The weighted reward of this rank's completion at `place`."""
        rewards, last = self.scorer.rewards, self.scorer.last
        return sum(reward.weight * (last[reward.name][place].value or 0.0) for reward in rewards)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this rank's random state, and what TRL keeps between steps."""
        super()._save_rng_state(output_dir)
        rank = self.session.rank
        # Between two rollouts: the next steps learn from completions that already exist.
        if self._step % self._generate_every:
            torch.save(self._buffered_inputs, Path(output_dir) / f"completions_{rank}.pt")
        if rank == 0:
            self._save_objective(Path(output_dir))

    def _save_objective(self, folder: Path) -> None:
        """Save the adaptive entropy weight under TRL's name, and a moving reference."""
        if self.use_adaptive_entropy:
            state = {"entropy_coef": self.entropy_coef}
            state["last_world_entropy"] = self._last_world_entropy
            (folder / "entropy_ctrl_state.json").write_text(json.dumps(state))
        if self.args.sync_ref_model:
            reference = self.accelerator.unwrap_model(self.ref_model)
            torch.save(reference.state_dict(), folder / _MOVED_REFERENCE)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        # TRL counts micro-batches from 0, by which it decides when to generate again.
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        completions = folder / f"completions_{self.session.rank}.pt"
        if completions.is_file():
            buffered = torch.load(completions, map_location="cpu", weights_only=True)
            self._buffered_inputs = send_to_device(buffered, self.accelerator.device)
        if (folder / _MOVED_REFERENCE).is_file():
            moved = torch.load(folder / _MOVED_REFERENCE, map_location="cpu", weights_only=True)
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(moved)

    @property
    def _generate_every(self) -> int:
        return int(self.args.steps_per_generation * self.num_iterations)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save without the adapter that stands for the reference.

        With two adapters in a checkpoint transformers would load the second alone. The reference is
        the adapter at the start of the run, and is built again from it.
        """
        adapters = self.model.peft_config if isinstance(self.model, PeftModel) else {}
        if _REFERENCE not in adapters:
            super()._save(output_dir, state_dict)
            return
        config = adapters.pop(_REFERENCE)
        try:
            super()._save(output_dir, state_dict)
        finally:
            adapters[_REFERENCE] = config


def _as_tensor(field: Any) -> Any:
    """A list of arrays as one tensor; tokens' own fields, lists of numbers, stay as they are."""
    is_arrays = isinstance(field, list) and field and isinstance(field[0], np.ndarray)
    return torch.tensor(np.stack(field)) if is_arrays else field


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pass rows on unchanged; tokens are known only after generation."""
    return {"rows": rows, "row_ids": [row["place"] for row in rows], "tokens": 0}


__all__ = ["ByEpoch", "GrpoTrainer", "LoadsByName", "collate"]
