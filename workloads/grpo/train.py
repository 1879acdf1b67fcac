"""GRPO with verifiable rewards, or its supervised stage: `tatara train profiles/grpo-h100.yaml`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import PreTrainedConfig, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from workloads.engine import distributed
from workloads.engine.nodes import check_alike
from workloads.engine.pretrained.base import Base, resolve
from workloads.engine.pretrained.files import compute_dtype
from workloads.engine.training import checkpoints
from workloads.engine.training.arguments import trainer_arguments
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import Retry, TataraError
from workloads.grpo.check_counts import prove, sample_of
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, dataset_of, prepare, try_on, turns_of
from workloads.grpo.evaluate import held_out
from workloads.grpo.export import keep_skeleton
from workloads.grpo.finish import finish
from workloads.grpo.model import (
    Processing,
    learner,
    load_model,
    load_processing,
    placeholders,
    sees_images,
    tokenizer_of,
)
from workloads.grpo.resume import LoadsByName
from workloads.grpo.rewards.scoring import Scorer, for_trainer, load_scorer
from workloads.grpo.rollouts import engine
from workloads.grpo.rollouts.rollouts import Rollout, RolloutLog
from workloads.grpo.sft import build_sft_trainer
from workloads.run import write_manifest
from workloads.run.events import Phase
from workloads.run.integrity import step_of
from workloads.run.session import Session

_REFERENCE = "ref"


def train(config: GrpoConfig, session: Session) -> None:
    """Train as the config says; Stopped where the run was asked to stop on the way."""
    session.enter(Phase.PREPARING)
    distributed.join(config.parallel.hang_timeout)
    base = resolve(config, session.tell)
    config = config.model_copy(update={"model": base.model})
    config.check_groups(distributed.world_size())
    engine.check(config, sees_images(base.config))
    processing = load_processing(base, config.grpo)
    data = prepare_data(config, session, base, processing)
    check_alike(lambda: {"rows": data.digest()})
    engine.check_rows(config, len(data.examples), distributed.world_size())
    resume = checkpoints.resume_point(session)
    model = load_model(base, config, session.tell)
    if session.is_main:
        keep_skeleton(config, base, model, processing, session.run)
    build = build_trainer if config.stage == "grpo" else build_sft_trainer
    with engine.ready(config, session):
        done_steps = step_of(resume) if resume else 0
        trainer = build(config, session, base, model, processing, data, done_steps)
        if resume is not None:
            trainer.check_resume(resume)
            session.tell(f"going on from {resume.name}")
        asker = held_out.Asker(trainer.model, processing)
        held_out.measure_before(config, session, asker, data, resume is not None)
        trainer.fit(resume)
    finish(config, session, trainer, data)
    distributed.leave()


def prepare_data(
    config: GrpoConfig, session: Session, base: Base[PreTrainedConfig], processing: Processing
) -> Prepared:
    """Rows whose prompts fit, and what there is to say about them; rank 0 fetches and draws.

    It also tries out what every later step depends on: how prompts were counted, and the rewards.
    """
    cache = Path(os.environ.get("TATARA_CACHE") or ".cache")
    data: Prepared | None = None
    problem: TataraError | None = None
    if session.local_rank == 0:
        try:
            data = prepare(config, base.folder, cache, session.progress)
            prove(sample_of(data.counted), processing, turns_of(config.data))
            data.lines += try_on(config, data.examples[0])
        except TataraError as error:
            problem = error
    distributed.all_or_none(problem, "data")
    data = data or prepare(config, base.folder, cache, session.progress)
    for line in data.lines:
        session.tell(line)
    if session.is_main:
        write_manifest(session.run, {"data": data.facts})
    return data


class ByEpoch(Sampler[int]):
    """Another order in every epoch, which follows from seed and epoch alone.

    TRL's own sampler counts how often it was asked, and would give a resumed run the first epoch's
    order again. Rows come in chunks of `prompts`; each row `group` times in a row, each chunk
    `repeats` times, because TRL asks for it again with every micro-batch of a step.
    """

    def __init__(self, rows: int, prompts: int, group: int, repeats: int, seed: int) -> None:
        self.rows, self.prompts, self.group, self.repeats = rows, prompts, group, repeats
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, self.rows - self.prompts + 1, self.prompts):
            chunk = order[start : start + self.prompts]
            for _ in range(self.repeats):
                yield from (row for row in chunk for _ in range(self.group))

    def __len__(self) -> int:
        return self.rows // self.prompts * self.prompts * self.group * self.repeats


class GrpoTrainer(LoadsByName, RunTrainer, GRPOTrainer):
    """The grpo workload's trainer.

    Completions are written for one optimizer step at a time and never used for another, so that a
    checkpoint, which lies between two steps, holds all there is: a resumed run samples the same
    completions again where the engine is transformers. vLLM's own random state is not part of it.
    """

    profile: GrpoConfig

    def __init__(
        self, *args: Any, profile: GrpoConfig, log: RolloutLog, scorer: Scorer, **kwargs: Any
    ) -> None:
        self.rollout_log, self.scorer = log, scorer
        self._completions: list[Any] = []
        super().__init__(*args, profile=profile, **kwargs)
        # TRL insists on a collator of its own, and RunTrainer on knowing the rows of a batch.
        self.data_collator = collate

    def fit(self, resume: Path | None) -> None:
        """Train to the end; out of memory, the advice for GRPO comes with the error."""
        try:
            super().fit(resume)
        except TataraError as error:
            is_final = not isinstance(error, Retry)
            if is_final and isinstance(error.__cause__, torch.OutOfMemoryError):
                ladder = "\n  ".join([str(error), *engine.memory_ladder(self.profile)])
                raise TataraError(ladder) from error
            raise

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "num_generations": self.num_generations}

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

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.profile.generation.engine == "vllm_colocate":
            tokens = placeholders(self.processing_class)
            known = tokenizer_of(self.processing_class).convert_tokens_to_ids(tokens)
            prompt_ids = engine.one_for_each_image(prompt_ids, known)
        result = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.session.progress()
        return result

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """TRL's own; where a reward fails on one rank, all of them stop at the same step."""
        self._completions = list(completions)
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
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
                row.get("images") or [row.get("image")],
            )
            for place, (row, completion, advantage) in enumerate(
                zip(inputs, self._completions, advantages, strict=True)
            )
        ]
        self.rollout_log.write(step, rollouts)

    def _total(self, place: int) -> float:
        """The weighted sum of what this rank's completion at `place` earned."""
        rewards, last = self.scorer.rewards, self.scorer.last
        return sum(one.weight * (last[one.name][place].value or 0.0) for one in rewards)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save without the adapter that stands for the reference.

        With two adapters in a checkpoint transformers would load the second alone. The reference
        is the adapter as the run began, and is made again from that.
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


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as they are, with their names; tokens are known only when completions are."""
    return {"rows": rows, "row_ids": [row["place"] for row in rows], "tokens": 0}


def build_trainer(
    config: GrpoConfig,
    session: Session,
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    processing: Processing,
    data: Prepared,
    done_steps: int,
) -> GrpoTrainer:
    """The GRPO trainer of this rank, which goes on after `done_steps`."""
    scorer = load_scorer(config.rewards, session.tell, session.progress)
    log = RolloutLog(session, config.rollouts, done_steps)
    with _named_by_folder(model, base.folder):
        return GrpoTrainer(
            profile=config,
            session=session,
            log=log,
            model=learner(model, config),
            scorer=scorer,
            reward_funcs=[for_trainer(reward, scorer) for reward in scorer.rewards],
            args=arguments(config, session, placeholders(processing)),
            processing_class=processing,
            train_dataset=dataset_of(data.examples, config.data),
        )


@contextmanager
def _named_by_folder(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """TRL loads a reference, and vLLM its model, by the name in the model: it is a folder then.

    The name that people know it by comes back afterwards, for adapters and model cards.
    """
    known = model.config.name_or_path
    model.name_or_path = model.config._name_or_path = str(folder)
    try:
        yield
    finally:
        model.name_or_path = model.config._name_or_path = known


def arguments(config: GrpoConfig, session: Session, image_tokens: Sequence[str]) -> GRPOConfig:
    """Our config in TRL's words; no other place names them.

    image_tokens: those that stand for images, none for a language model. One generation serves one
    optimizer step: TRL's default, on which resuming depends.
    """
    grpo = config.grpo
    own = trainer_arguments(config, session, None)
    if image_tokens:
        # A row without an image leaves the vision tower without gradients; TRL decides.
        own["ddp_find_unused_parameters"] = None
    dtype = str(compute_dtype(config.train)).removeprefix("torch.")
    return GRPOConfig(
        **own,
        **grpo.settled(),
        **engine.arguments(config, image_tokens),
        model_init_kwargs={"dtype": dtype, "trust_remote_code": config.model.trust_remote_code},
        num_generations=grpo.num_generations,
        temperature=grpo.temperature,
        max_completion_length=grpo.max_completion_length,
        reward_weights=[one.weight for one in config.rewards.functions],
    )


__all__ = ["ByEpoch", "GrpoTrainer", "arguments", "build_trainer", "train"]
