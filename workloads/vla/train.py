"""Fine-tuning of a robot policy, from data to exported model: `tatara train profiles/vla.yaml`."""

import os
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from workloads.engine import distributed
from workloads.engine.nodes import check_alike
from workloads.engine.pretrained.base import Base, resolve
from workloads.engine.training import checkpoints
from workloads.engine.training.arguments import trainer_arguments
from workloads.environment import cache_folder
from workloads.run import write_manifest
from workloads.run.events import Phase
from workloads.run.session import Session
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources, open_sources, with_frames
from workloads.vla.family import family_of
from workloads.vla.finish import finish
from workloads.vla.statistics import write_statistics
from workloads.vla.trainer import VlaTrainer


def train(config: VlaConfig, session: Session) -> None:
    """Fine-tune by the config; raises Stopped where the run was asked to stop before its end."""
    session.enter(Phase.PREPARING)
    distributed.join(config.parallel.hang_timeout)
    family = family_of(config)
    base = resolve(config, session.report, family.read)
    sources = prepare_data(config, session)
    check_alike(lambda: {"episodes": sources.fingerprint})
    resume = checkpoints.resume_point(session)
    model = family.load(config, base, sources, session.report)
    if session.is_main:
        family.keep_skeleton(base, model, session.run)
    trainer = build_trainer(config, session, base, model, sources)
    trainer.args.eval_on_start = (
        config.evaluation.before and resume is None and trainer.eval_dataset is not None
    )
    if resume is not None:
        trainer.check_resume(resume)
        session.report(f"going on from {resume.name}")
    trainer.fit(resume)
    finish(config, session, trainer)
    distributed.leave()


def prepare_data(config: VlaConfig, session: Session) -> Sources:
    """The datasets, split and described, and remarks on them."""
    cache = cache_folder(os.environ)
    kept = session.run.path / "dataset_statistics.json"
    sources = open_sources(config, cache, session.progress, kept)
    for line in (*sources.lines, *sources.notes):
        session.report(f"data: {line}")
    if session.is_main:
        write_statistics(session.run.path, sources.statistics)
        write_manifest(session.run, {"data": sources.as_dict()})
    return sources


def build_trainer(
    config: VlaConfig,
    session: Session,
    base: Base[Any],
    model: PreTrainedModel,
    sources: Sources,
) -> VlaTrainer:
    """The trainer of this rank."""
    family = family_of(config)
    processor = family.processor(base)
    folder = cache_folder(os.environ) / "frames"
    if config.parallel.nodes > 1:
        # Memory maps of one file are not coherent between machines.
        folder /= f"node-{os.environ.get('GROUP_RANK', '0')}"
    sources, said = with_frames(sources, config, processor, folder)
    for line in said:
        session.report(f"data: {line}")
    samples = family.samples(config, base, model, sources, processor)
    return VlaTrainer(
        profile=config,
        session=session,
        sources=sources,
        samples=samples,
        model=family.trainable(model, config),
        args=arguments(config, session, samples.held_out is not None),
    )


def arguments(config: VlaConfig, session: Session, has_held_out: bool) -> TrainingArguments:
    """Translate our config into transformers' arguments; no other place names them."""
    every = config.evaluation.every_steps if has_held_out else None
    return TrainingArguments(
        **trainer_arguments(config, session, every),
        label_names=[family_of(config).labels],
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
