"""Trainings of the llm workload inside a part's own process: its trainer, a session, figures."""

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench._rank import rank_session
from bench.gpu._sft_cases import ONE_B, RATE, TOKENIZER, WARM, Case, Rows, rows_of
from bench.gpu._sft_sides import Clock, Count, figures, prepared
from bench.gpu.part import Report
from workloads.engine.pretrained.base import find_base
from workloads.engine.training.memory import memory_facts
from workloads.llm.config import LlmConfig
from workloads.llm.data.collate import Collate
from workloads.llm.data.prepare import Prepared
from workloads.llm.model import load_model
from workloads.llm.train import build_trainer

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1536,
    "tie_word_embeddings": True,
}
# The tiny model is drawn wider, so that other inputs give clearly other outputs; one of real width
# amplifies the rounding of bf16 then: logits are 15 % off those in fp32, and 3 % as it is drawn.
SPREAD, WIDER = 0.02, 0.05
LEARNING = 2e-4


@dataclass(frozen=True)
class Trained:
    """Losses and gradient norms step by step, the mean loss by labelled tokens, tokens a second
    after the warm-up, and the run's memory as its manifest has it."""

    losses: list[float]
    norms: list[float]
    loss: float
    rate: float
    memory: dict[str, Any]

    @property
    def allocated(self) -> int | None:
        """Bytes that torch had allocated at the highest; None on a CPU."""
        measured = self.memory["measured"]
        return measured and int(measured["allocated"])


def case_of(
    report: Report,
    batch: int = 2,
    length: int = 2048,
    mean: int | None = None,
    shape: Mapping[str, Any] = ONE_B,
) -> Case:
    """Rows of random tokens for a model of that shape; a tiny one and short rows on a CPU."""
    if not report.on_gpu:
        length, mean, shape = 64, mean and 16, TINY
    return Case("part", "", shape, length, batch, (), mean=mean)


def model_folder(report: Report, shape: Mapping[str, Any], has_weights: bool = True) -> Path:
    """Where `base_model` has a model of that shape."""
    shape = shape if report.on_gpu else TINY
    name = f"llama-{shape['hidden_size']}-{shape['num_hidden_layers']}"
    return report.work / "models" / (name if has_weights else f"{name}-config")


def base_model(report: Report, shape: Mapping[str, Any] = ONE_B, has_weights: bool = True) -> Path:
    """A model's folder, made once for all parts of a run: with weights in bf16, drawn at random, or
    with its config and tokenizer alone."""
    folder = model_folder(report, shape, has_weights)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    report.runs.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=report.runs))
    config = LlamaConfig(
        **(shape if report.on_gpu else TINY), max_position_embeddings=8192,
        initializer_range=SPREAD if report.on_gpu else WIDER,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    if has_weights:
        torch.manual_seed(0)
        with torch.device(report.device):
            model = LlamaForCausalLM(config)
        model.to(torch.bfloat16).save_pretrained(making)
        del model
        free()
    else:
        config.save_pretrained(making)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(making)
    making.rename(folder)
    return folder


def config_of(
    case: Case, base: Path, steps: int, settings: Mapping[str, Any], is_drawn: bool = False
) -> LlmConfig:
    """The benchmark's profile with other settings, named as on the command line.

    is_drawn: weights are drawn at random, not read from the base's folder.
    """
    fields = case.config(steps, model=str(base)).model_dump()
    fields["model"]["random_init"] = is_drawn
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        place = fields
        for section in sections:
            place = place[section]
        place[name] = value
    return LlmConfig.model_validate(fields)


def train(
    report: Report,
    case: Case,
    settings: Mapping[str, Any],
    steps: int = 6,
    rows: Rows | None = None,
    from_disk: bool = False,
    look: Callable[[Any], None] = lambda trainer: None,
) -> Trained:
    """Train for some steps as `workloads.llm.train` does, and leave nothing on the GPU.

    rows: random ones where there are none. from_disk: weights are read, as a run reads them, and
    are the same in every type; else they are drawn where they are trained, which takes a fifth of
    the time. look: is shown the trainer after its last step.
    """
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    free()  # what a training before held that ended with an error
    base = base_model(report, case.shape, from_disk)
    config = config_of(case, base, steps, settings, not from_disk)
    # Packing is a matter of the collated rows, as the profile has it.
    packed = replace(case, mean=(case.mean or case.length) if config.data.packing else None)
    report.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=report.runs))
    data = prepared(packed, rows or rows_of(case, steps), folder)
    # What is read finds its own device: a quantised base is made on the GPU.
    place: AbstractContextManager[Any]
    place = nullcontext() if from_disk else torch.device(report.device)
    try:
        return _in_a_session(config, base, data, folder, place, look)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        free()


def _in_a_session(
    config: LlmConfig,
    base: Path,
    data: Prepared,
    folder: Path,
    place: AbstractContextManager[Any],
    look: Callable[[Any], None],
) -> Trained:
    """What nothing holds after it has returned: model, trainer, optimizer.

    place: the context that the model is made in.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    with rank_session(folder) as session:
        with place:
            model = load_model(find_base(config.model, print), config, print)
        free()  # what drawing it needed
        trainer = build_trainer(config, session, model, tokenizer, data)
        clock, count = Clock(), Count(Collate(tokenizer.pad_token_id))
        trainer.data_collator = count
        trainer.add_callback(clock)
        del model
        trainer.fit(None)
        memory = memory_facts(config, 1)
        look(trainer)
        steps, micro = trainer.state.max_steps, trainer.args.gradient_accumulation_steps
        loss, tokens, seconds = figures(trainer, clock, count, micro)
        history = [row for row in trainer.state.log_history if "grad_norm" in row]
        trainer.accelerator.free_memory()
    return Trained(
        [float(row["loss"]) for row in history],
        [float(row["grad_norm"]) for row in history],
        loss,
        tokens / seconds if steps > WARM else 0.0,
        memory,
    )


def same_rows(case: Case, steps: int) -> Rows:
    """One batch again and again, which a model that learns gets to know."""
    return rows_of(case, 1)[: case.batch] * steps


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


STILL = {"optim.learning_rate": RATE, "train.log_every": 1}
LEARNS = {"optim.learning_rate": LEARNING, "train.log_every": 1}


def learns(report: Report, name: str, trained: Trained) -> None:
    """Note whether a training on one batch has got to know it."""
    first, last = trained.losses[0], trained.losses[-1]
    finite = bool(np.isfinite(trained.losses).all())
    report.check(f"{name}: every loss is finite", finite, [round(x, 4) for x in trained.losses])
    # The first scales of fp16 are found by overflows, whose steps are left out.
    usable = sum(np.isfinite(trained.norms))
    report.check(f"{name}: gradients are finite", usable > len(trained.norms) / 2, int(usable))
    report.check(f"{name}: the loss falls", last < first, f"{first:.4f} → {last:.4f}")
