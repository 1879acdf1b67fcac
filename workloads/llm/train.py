"""Supervised fine-tuning, from data to exported model: `tatara train profiles/demo.yaml`."""

import os
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from workloads.engine import distributed
from workloads.engine.nodes import check_alike
from workloads.engine.pretrained.adapter import add_adapter
from workloads.engine.pretrained.base import resolve
from workloads.engine.pretrained.files import positions
from workloads.engine.training import checkpoints
from workloads.engine.training.arguments import trainer_arguments
from workloads.engine.training.trainer import RunTrainer
from workloads.environment import cache_folder
from workloads.llm.callbacks import callbacks
from workloads.llm.config import LlmConfig
from workloads.llm.data.collate import Collate
from workloads.llm.data.prepare import Prepared, prepare
from workloads.llm.export import keep_skeleton
from workloads.llm.finish import evaluate_before, finish
from workloads.llm.model import load_model, load_tokenizer
from workloads.llm.packed import refuse_mixing
from workloads.run import write_manifest
from workloads.run.events import Phase
from workloads.run.session import Session


def train(config: LlmConfig, session: Session) -> None:
    """Fine-tune by the config; raises Stopped where the run was asked to stop before its end."""
    session.enter(Phase.PREPARING)
    distributed.join(config.parallel.hang_timeout)
    base = resolve(config, session.report)
    config = config.model_copy(update={"model": base.model})
    tokenizer = load_tokenizer(base, session.report)
    data = prepare_data(config, session, tokenizer, positions(base.config.to_dict()))
    check_alike(lambda: {"rows": data.report.train.digest})
    resume = checkpoints.resume_point(session)
    model = load_model(base, config, session.report)
    if session.is_main:
        keep_skeleton(base, model, tokenizer, session.run)
    evaluate_before(config, session, model, tokenizer)
    trainer = build_trainer(config, session, model, tokenizer, data)
    is_first = resume is None and data.evaluation is not None
    trainer.args.eval_on_start = config.evaluation.before and is_first
    if resume is not None:
        trainer.check_resume(resume)
        session.report(f"going on from {resume.name}")
    trainer.fit(resume)
    finish(config, session, trainer)
    distributed.leave()


def prepare_data(
    config: LlmConfig,
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None = None,
) -> Prepared:
    """Tokenised rows and the report on them; longest: the model's positions."""
    cache = cache_folder(os.environ)
    data = prepare(config, tokenizer, cache, session.progress, longest)
    for line in data.report.lines():
        session.report(line)
    if session.is_main:
        write_manifest(session.run, {"data": data.report.as_dict()})
    return data


class LeanSFTTrainer(SFTTrainer):
    """TRL's trainer with its fused head, without copying statistics to the host in every step."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood over the labelled tokens of all ranks."""
        inputs["use_cache"] = False
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, fused_lm_head=self.fused)
        loss = outputs.loss
        if num_items_in_batch is not None:
            # The count is over all ranks, and the gradients are averaged over them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class LlmTrainer(RunTrainer, LeanSFTTrainer):
    """The llm workload's trainer."""

    def __init__(self, *args: Any, profile: LlmConfig, digest: str = "", **kwargs: Any) -> None:
        self.fused, self.digest = profile.train.fused_cross_entropy, digest
        super().__init__(*args, profile=profile, **kwargs)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "data": self.digest}


def build_trainer(
    config: LlmConfig,
    session: Session,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
) -> LlmTrainer:
    """The trainer of this rank."""
    if config.data.packing:
        refuse_mixing(model)
    if config.adapter.method != "full":
        set_seed(config.train.seed)
        model = add_adapter(model, config.adapter)
    return LlmTrainer(
        profile=config,
        session=session,
        places=data.places,
        digest=data.report.train.digest,
        model=model,
        args=arguments(config, session, bool(data.evaluation)),
        processing_class=tokenizer,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=Collate(tokenizer.pad_token_id),
        callbacks=callbacks(config, session, tokenizer) if data.evaluation else None,
    )


def arguments(config: LlmConfig, session: Session, has_evaluation: bool) -> SFTConfig:
    """Translate our config into TRL's arguments; no other place names them."""
    every = config.evaluation.every_steps if has_evaluation else None
    return SFTConfig(
        **trainer_arguments(config, session, every),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
