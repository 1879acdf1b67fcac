"""The sides of bench/gpu/grpo.py: one turn of one side, from a fresh model to its figures.

Nothing here asks for a GPU by itself, so that a test can take a turn of a tiny case anywhere.
"""

import gc
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from bench._rank import rank_session
from bench.gpu._grpo_cases import OURS, RATE, TRL, WHOLE, Case, bench_folder, examples_of
from bench.gpu._sft_cases import WARM
from bench.gpu._sft_sides import Clock, synchronise
from workloads.engine.generate.encode import encode
from workloads.engine.pretrained.base import find_base
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared
from workloads.grpo.data.rows import training_dataset
from workloads.grpo.model import (
    Processing,
    learner,
    load_model,
    load_processing,
    placeholders,
    prompt_texts,
    tokenizer_of,
)
from workloads.grpo.rewards.scoring import for_trainer, load_reward
from workloads.grpo.train import build_trainer


@dataclass(frozen=True)
class Turn:
    """Figures of one turn: mean loss and gradient norm of a step, tokens a second of training
    alone, most bytes allocated."""

    loss: float
    grad_norm: float
    rate: float
    peak: int


def reward(completion: str) -> float:
    """Another number for other words: a step in which all earn the same has no gradient."""
    return zlib.crc32(completion.encode()) % 97 / 97


@dataclass
class Train(Clock):
    """Seconds of training alone: without those that prepare pictures, prompts and rewards."""

    apart: float = 0.0

    def without(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            start = time.perf_counter()
            found = work(*args, **kwargs)
            synchronise()
            if self.since:  # before that, nothing is counted
                self.apart += time.perf_counter() - start
            return found

        return timed


@dataclass
class Given:
    """Completions that follow from their prompt alone, in place of a model's own."""

    length: int
    words: np.ndarray

    def __call__(self, prompt_ids: Sequence[Sequence[int]], *_: Any, **__: Any) -> Any:
        seen: dict[bytes, int] = {}
        completions = []
        for prompt in prompt_ids:
            key = np.asarray(prompt, dtype=np.int64).tobytes()
            seen[key] = seen.get(key, -1) + 1
            chance = np.random.default_rng([zlib.crc32(key), seen[key]])
            completions.append(chance.choice(self.words, self.length).tolist())
        return completions, None


def take_turn(case: Case, side: str, steps: int) -> Turn:
    """Build a model, train it for `steps` on the same prompts, and leave nothing behind."""
    transformers.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    try:
        with bench_folder(case) as folder:
            config = case.config(folder, steps)
            processing = load_processing(find_base(config.model, _silent), config.grpo)
            clock = Train()
            history = _SIDES[side](case, config, processing, folder, clock)
        peak = torch.cuda.max_memory_allocated() if gpu else 0
        rows = [row for row in history if "loss" in row and "grad_norm" in row]
        loss, norm = (float(np.mean([row[name] for row in rows])) for name in ("loss", "grad_norm"))
        tokens = case.rows * case.length * (steps - WARM)
        return Turn(loss, norm, tokens / (clock.seconds - clock.apart), peak)
    finally:
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


def _model(config: GrpoConfig) -> Any:
    """Made where it is to be trained: random weights of billions take long on a CPU. What that
    needed is not counted: a checkpoint is read as it is held."""
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        model = load_model(find_base(config.model, _silent), config, _silent)
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return model


def _run(trainer: Any, case: Case, processing: Processing, clock: Train) -> list[dict[str, Any]]:
    """Train with completions that are given; the rows that were logged."""
    tokenizer = tokenizer_of(processing)
    pictures = tokenizer.convert_tokens_to_ids(placeholders(processing))
    kept_out = {*tokenizer.all_special_ids, *pictures}
    row = trainer.train_dataset[0]
    texts = prompt_texts(processing, [row["prompt"]])
    prompt = encode(processing, texts, [[row["image"]]])["input_ids"].shape[1]
    words = np.array([word for word in range(len(tokenizer)) if word not in kept_out])
    trainer._generate_single_turn = Given(case.length - prompt, words)
    trainer._generate_and_score_completions = clock.without(trainer._generate_and_score_completions)
    trainer.add_callback(clock)
    trainer.train()
    history: list[dict[str, Any]] = trainer.state.log_history
    trainer.accelerator.free_memory()
    return history


def _ours(
    case: Case, config: GrpoConfig, processing: Processing, folder: Path, clock: Train
) -> list[dict[str, Any]]:
    """`workloads.grpo.train`'s own trainer, with a session and a run directory."""
    data = Prepared(examples_of(case, folder), [])
    with rank_session(folder) as session:
        base, model = find_base(config.model, _silent), _model(config)
        trainer = build_trainer(config, session, base, model, processing, data, 0)
        return _run(trainer, case, processing, clock)


def _trl(
    case: Case,
    config: GrpoConfig,
    processing: Processing,
    folder: Path,
    clock: Train,
    kind: type[GRPOTrainer] = GRPOTrainer,
) -> list[dict[str, Any]]:
    """TRL's trainer as it comes, with the same model, adapter, rows and batches."""
    sdpa = config.model.model_copy(update={"attention": "sdpa"})  # what transformers takes itself
    config = config.model_copy(update={"model": sdpa})
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=config.train.max_steps,
        per_device_train_batch_size=case.micro,
        gradient_accumulation_steps=case.rows // case.micro,
        num_generations=config.grpo.num_generations,
        max_completion_length=config.grpo.max_completion_length,
        learning_rate=RATE,
        lr_scheduler_type=config.optim.schedule,
        gradient_checkpointing=config.train.gradient_checkpointing,
        bf16=config.train.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = kind(
        model=learner(_model(config), config),
        reward_funcs=[
            for_trainer(load_reward(function.name)) for function in config.rewards.functions
        ],
        args=settings,
        processing_class=processing,
        train_dataset=training_dataset(examples_of(case, folder)),
    )
    return _run(trainer, case, processing, clock)


class _WholeLogits(GRPOTrainer):
    """TRL's trainer with the log-probabilities of R1-V's: logits of every position, whole rows of
    log-softmax, one row of the batch after the other."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        named = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "token_type_ids")
        seen = {name: inputs[name] for name in named if inputs.get(name) is not None}
        with self.accelerator.autocast():
            logits = model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **seen
            ).logits[:, :-1]
        found = [
            row.log_softmax(dim=-1).gather(1, ids.unsqueeze(1)).squeeze(1)
            for row, ids in zip(logits, input_ids[:, 1:], strict=True)
        ]
        kept = torch.stack(found)[:, -logits_to_keep:]
        return kept, torch.zeros_like(kept), None


def _silent(text: str) -> None:
    pass


_SIDES: Mapping[str, Callable[..., list[dict[str, Any]]]] = {
    OURS: _ours,
    TRL: _trl,
    WHOLE: partial(_trl, kind=_WholeLogits),
}
