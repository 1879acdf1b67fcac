"""GRPO with verifiable rewards, or its supervised stage: `tatara train profiles/grpo-h100.yaml`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from trl import GRPOConfig

from workloads.engine import distributed
from workloads.engine.nodes import check_alike
from workloads.engine.pretrained.base import Base, resolve
from workloads.engine.pretrained.chat import stop_ids, with_stops
from workloads.engine.pretrained.files import compute_dtype
from workloads.engine.training import checkpoints
from workloads.engine.training.arguments import trainer_arguments
from workloads.environment import cache_folder
from workloads.errors import TataraError
from workloads.grpo.check_counts import prove, sample_of
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, dataset_of, prepare, try_on, turns_of
from workloads.grpo.evaluate import held_out
from workloads.grpo.export import keep_skeleton
from workloads.grpo.finish import finish
from workloads.grpo.model import (
    Processing,
    check_options,
    learner,
    load_model,
    load_processing,
    placeholders,
    sees_images,
)
from workloads.grpo.rewards.scoring import for_trainer, load_scorer
from workloads.grpo.rollouts import engine
from workloads.grpo.rollouts.rollouts import RolloutLog
from workloads.grpo.sft import build_sft_trainer
from workloads.grpo.tools import load_tools
from workloads.grpo.trl_hooks import GrpoTrainer
from workloads.run import write_manifest
from workloads.run.events import Phase
from workloads.run.integrity import step_of
from workloads.run.session import Session


def train(config: GrpoConfig, session: Session) -> None:
    """Train by the config; raises Stopped where the run was asked to stop before its end."""
    session.enter(Phase.PREPARING)
    distributed.join(config.parallel.hang_timeout)
    base = resolve(config, session.report)
    config = config.model_copy(update={"model": base.model})
    config.check_groups(distributed.world_size())
    check_options(base.config, config)
    engine.check(config, sees_images(base.config), session.is_main)
    processing = load_processing(base, config.grpo, config.tools.used)
    load_tools(config.tools, bool(config.rewards.functions)).check(processing)
    data = prepare_data(config, session, base, processing)
    check_alike(lambda: {"rows": data.digest()})
    engine.check_rows(config, len(data.examples), distributed.world_size())
    resume = checkpoints.resume_point(session)
    model = load_model(base, config, session.report)
    if session.is_main:
        keep_skeleton(config, base, model, processing, session.run)
    build = build_trainer if config.stage == "grpo" else build_sft_trainer
    with engine.ready(config, session):
        done_steps = step_of(resume) if resume else 0
        trainer = build(config, session, base, model, processing, data, done_steps)
        if resume is not None:
            trainer.check_resume(resume)
            session.report(f"going on from {resume.name}")
        asker = held_out.Asker(trainer.model, processing)
        held_out.measure_before(config, session, asker, data, resume is not None)
        trainer.fit(resume)
    finish(config, session, trainer, data)
    distributed.leave()


def prepare_data(
    config: GrpoConfig, session: Session, base: Base[PreTrainedConfig], processing: Processing
) -> Prepared:
    """Rows whose prompts fit, with remarks; rank 0 downloads and draws them.

    Also checks what all later steps depend on: predicted prompt lengths, and the rewards.
    """
    cache = cache_folder(os.environ)
    data: Prepared | None = None
    problem: TataraError | None = None
    if session.local_rank == 0:
        try:
            data = prepare(config, base.folder, cache, session.progress)
            schemas = load_tools(config.tools).schemas
            switches, turns = config.model.chat_template_kwargs, turns_of(config.data)
            prove(sample_of(data.counted), processing, turns, schemas, switches)
            data.lines += try_on(config, data.examples[0])
        except TataraError as error:
            problem = error
    distributed.all_or_none(problem, "data")
    data = data or prepare(config, base.folder, cache, session.progress)
    for line in data.lines:
        session.report(line)
    if session.is_main:
        write_manifest(session.run, {"data": data.facts})
    return data


def build_trainer(
    config: GrpoConfig,
    session: Session,
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    processing: Processing,
    data: Prepared,
    done_steps: int,
) -> GrpoTrainer:
    """The GRPO trainer of this rank, which resumes after `done_steps`."""
    tools = load_tools(config.tools)
    scorer = load_scorer(config.rewards, session.report, session.progress)

    def ask_held_out(model: Any, step: int) -> None:
        asker = held_out.Asker(model, processing)
        held_out.measure(config, session, asker, data, f"step-{step}", step)

    log = RolloutLog(session, config.rollouts, done_steps)
    # TRL ends completions at these tokens, and counts completions without one as cut.
    model.generation_config = with_stops(processing, model.generation_config)
    with _named_by_folder(model, base.folder):
        return GrpoTrainer(
            profile=config,
            session=session,
            log=log,
            model=learner(model, config),
            scorer=scorer,
            ask_held_out=ask_held_out,
            reward_funcs=[for_trainer(reward, scorer) for reward in scorer.rewards],
            args=arguments(config, session, placeholders(processing), stop_ids(processing)),
            processing_class=processing,
            train_dataset=dataset_of(data.examples, config.data),
            tools=list(tools.functions),
            environment_factory=tools.environment,
        )


@contextmanager
def _named_by_folder(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Name the model by its folder: TRL loads a reference, and vLLM its model, by the name in it.

    Afterwards the public name is restored, for adapters and model cards.
    """
    known = model.config.name_or_path
    model.name_or_path = model.config._name_or_path = str(folder)
    try:
        yield
    finally:
        model.name_or_path = model.config._name_or_path = known


def arguments(
    config: GrpoConfig, session: Session, image_tokens: Sequence[str], ends: Sequence[int] = ()
) -> GRPOConfig:
    """Translate our config into TRL's arguments; no other place names them.

    image_tokens: those that stand for images, none for a language model. ends: the tokens that a
    completion ends with.
    """
    grpo = config.grpo
    own = trainer_arguments(config, session, None)
    switches = {"chat_template_kwargs": config.model.chat_template_kwargs}
    if image_tokens:
        # None: TRL decides. A row without an image leaves the vision tower without gradients.
        own["ddp_find_unused_parameters"] = None
    dtype = str(compute_dtype(config.train)).removeprefix("torch.")
    return GRPOConfig(
        **own,
        **(grpo.arguments() | engine.arguments(config, image_tokens, ends) | switches),
        model_init_kwargs={"dtype": dtype, "trust_remote_code": config.model.trust_remote_code},
        max_tool_calling_iterations=config.tools.max_rounds,
        reward_weights=[function.weight for function in config.rewards.functions],
    )


__all__ = ["arguments", "build_trainer", "train"]
