"""Fine-tuning of a robot policy, from data to exported model: `tatara train profiles/vla.yaml`."""

import os

from transformers import TrainingArguments

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
from workloads.vla.data.steps import Collate, Maker, Steps
from workloads.vla.export import keep_skeleton, write_statistics
from workloads.vla.finish import finish
from workloads.vla.loading import (
    image_processor,
    load_model,
    oft_spec,
    read_spec,
    trainable,
)
from workloads.vla.openvla.config import OpenVLASpec
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.trainer import VlaTrainer


def train(config: VlaConfig, session: Session) -> None:
    """Fine-tune as the config says; Stopped where the run was asked to stop on the way."""
    session.enter(Phase.PREPARING)
    distributed.join(config.parallel.hang_timeout)
    base = resolve(config, session.tell, read_spec)
    sources = prepare_data(config, session)
    check_alike(lambda: {"episodes": sources.fingerprint})
    resume = checkpoints.resume_point(session)
    oft = oft_spec(config, sources.action_dim, sources.proprio_dim)
    model = load_model(config, base.folder, oft, sources.statistics, session.tell)
    if session.is_main:
        keep_skeleton(base, model, session.run)
    trainer = build_trainer(config, session, base, model, sources)
    trainer.args.eval_on_start = (
        config.evaluation.before and resume is None and trainer.eval_dataset is not None
    )
    if resume is not None:
        trainer.check_resume(resume)
        session.tell(f"going on from {resume.name}")
    trainer.fit(resume)
    finish(config, session, trainer)
    distributed.leave()


def prepare_data(config: VlaConfig, session: Session) -> Sources:
    """The data sets, split and described, and what there is to say about them."""
    cache = cache_folder(os.environ)
    kept = session.run.path / "dataset_statistics.json"
    sources = open_sources(config, cache, session.progress, kept)
    for line in (*sources.lines, *sources.notes):
        session.tell(f"data: {line}")
    if session.is_main:
        write_statistics(session.run.path, sources.statistics)
        write_manifest(session.run, {"data": sources.as_dict()})
    return sources


def build_trainer(
    config: VlaConfig,
    session: Session,
    base: Base[OpenVLASpec],
    model: OpenVLA,
    sources: Sources,
) -> VlaTrainer:
    """The trainer of this rank."""
    processor = image_processor(base.folder)
    folder = cache_folder(os.environ) / "frames"
    if config.parallel.nodes > 1:
        # Memory maps of one file by several machines are not kept alike.
        folder /= f"node-{os.environ.get('GROUP_RANK', '0')}"
    sources, said = with_frames(sources, config, processor, folder)
    for line in said:
        session.tell(f"data: {line}")
    maker = Maker(
        processor=processor,
        tokenizer=LlamaTokenizer(base.folder),
        actions=model.action_tokenizer,
        statistics=sources.statistics,
        augmentation=config.data.augmentation,
        chunk=config.chunk,
        proprio=config.action_head.kind == "oft" and config.action_head.proprio,
    )
    seed, samples = config.train.seed, config.evaluation.samples
    held_out = Steps(sources.held_out, maker, seed, False, samples) if sources.held_out else None
    return VlaTrainer(
        profile=config,
        session=session,
        sources=sources,
        model=trainable(model, config),
        args=arguments(config, session, held_out is not None),
        train_dataset=Steps(sources.train, maker, seed, True),
        eval_dataset=held_out,
        data_collator=Collate(
            base.config.pad_token_id,
            base.config.patches * len(sources.train[0].cameras),
            config.regresses,
        ),
    )


def arguments(config: VlaConfig, session: Session, has_held_out: bool) -> TrainingArguments:
    """Our config in transformers' words; no other place names them."""
    every = config.evaluation.every_steps if has_held_out else None
    return TrainingArguments(
        **trainer_arguments(config, session, every),
        label_names=["labels"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
