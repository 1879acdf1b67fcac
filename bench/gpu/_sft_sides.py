"""The sides of bench/gpu/sft.py: one turn of one side, from a fresh model to its figures.

Nothing here asks for a GPU by itself, so that a test can take a turn of a tiny case anywhere.
"""

import functools
import gc
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import (
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from bench._rank import rank_session
from bench.gpu._sft_cases import (
    COMPILED,
    HAND,
    OURS,
    RATE,
    TRL,
    TRL_GROUPED,
    TRL_LIGER,
    WARM,
    Case,
    Rows,
    model_folder,
    rows_of,
)
from workloads.data.packing import pack
from workloads.engine.pretrained.base import find_base
from workloads.llm.config import LlmConfig
from workloads.llm.data.collate import Collate
from workloads.llm.data.prepare import Prepared
from workloads.llm.data.report import Report, SplitReport
from workloads.llm.model import load_model
from workloads.llm.train import build_trainer


@dataclass(frozen=True)
class Turn:
    """Figures of one turn: loss over all labelled tokens, tokens a second, most bytes allocated."""

    loss: float
    rate: float
    peak: int


def missing(side: str) -> str:
    """Why a side cannot take part here; empty where it can."""
    if side == TRL_LIGER and importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return ""


@dataclass
class Count:
    """A collator that notes the tokens of each batch, and those with a label that a loss counts."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    tokens: list[int] = field(default_factory=list)
    labelled: list[int] = field(default_factory=list)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        self.labelled.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch


@dataclass
class Clock(TrainerCallback):
    """Seconds from the end of the warm-up to the end, and the loss of every step."""

    since: float = 0.0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def note(self, step: int, last: int) -> None:
        if step in (WARM, last):
            synchronise()
        if step == WARM:
            self.since = time.perf_counter()
        if step == last:
            self.seconds = time.perf_counter() - self.since

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.note(state.global_step, state.max_steps)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turn(case: Case, side: str, steps: int) -> Turn:
    """Build a model, train it for `steps`, and leave nothing behind."""
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    run = _SIDES[side]
    try:
        with model_folder(case) as folder:
            loss, tokens, seconds = run(case, steps, folder)
        peak = torch.cuda.max_memory_allocated() if gpu else 0
        return Turn(loss, tokens / seconds, peak)
    finally:
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


def _model(config: LlmConfig) -> Any:
    """Made where it is to be trained: random weights of billions take long on a CPU."""
    torch.manual_seed(config.train.seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return load_model(find_base(config.model, print), config, lambda text: None)


def figures(trainer: Trainer, clock: Clock, count: Count, micro: int) -> tuple[float, int, float]:
    """Loss by labelled tokens, tokens of the timed steps, their seconds.

    micro: batches a step. The loader is a batch ahead, so that only those of whole steps count.
    """
    steps = trainer.state.max_steps
    tokens = sum(count.tokens[WARM * micro : steps * micro])
    return mean_loss(trainer, count, micro), tokens, clock.seconds


def mean_loss(trainer: Trainer, count: Count, micro: int) -> float:
    """The mean over the rows that were logged, weighted by the labelled tokens behind them."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    total, weight, since = 0.0, 0, 0
    for row in rows:
        labelled = sum(count.labelled[since * micro : row["step"] * micro])
        total, weight, since = total + row["loss"] * labelled, weight + labelled, row["step"]
    return total / weight


def _ours(case: Case, steps: int, folder: Path, compiled: bool = False) -> tuple[float, int, float]:
    """`workloads.llm.train`'s own trainer, with a session and a run directory."""
    config = case.config(steps, compiled, str(folder))
    with rank_session(folder) as session:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        data = prepared(case, rows_of(case, steps), folder)
        trainer = build_trainer(config, session, _model(config), tokenizer, data)
        clock, count = Clock(), Count(Collate(tokenizer.pad_token_id))
        trainer.data_collator = count
        trainer.add_callback(clock)
        trainer.train()
        found = figures(trainer, clock, count, 1)
        trainer.accelerator.free_memory()
    return found


def prepared(case: Case, rows: Rows, folder: Path) -> Prepared:
    """The rows as `workloads.llm.data.prepare` leaves them, packed where the profile says so."""
    lengths = np.array([len(row) for row in rows])
    groups = pack(lengths, case.length) if case.mean else [[at] for at in range(len(rows))]
    joined = [np.concatenate([rows[at] for at in group]) for group in groups]
    train = datasets.Dataset.from_dict(
        {
            "input_ids": joined,
            "labels": joined,
            "seq_lengths": [[len(rows[at]) for at in group] for group in groups],
            "row_ids": groups,
        }
    )
    report = Report(case.length, "error", SplitReport(rows=len(rows)), None, [])
    return Prepared(train, None, report, folder)


def _trl(
    case: Case, steps: int, folder: Path, liger: bool = False, grouped: bool = False
) -> tuple[float, int, float]:
    """TRL's trainer as it comes, on rows that are prepared already."""
    config = case.config(steps, model=str(folder))
    config = config.model_copy(update={"model": config.model.model_copy(update=_SDPA)})
    rows = rows_of(case, steps)
    train = datasets.Dataset.from_dict(
        {"input_ids": rows, "labels": rows, "length": [len(row) for row in rows]}
    )
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=case.accumulation,
        learning_rate=RATE,
        gradient_checkpointing=False,
        use_liger_kernel=liger,
        use_cpu=not torch.cuda.is_available(),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="group_by_length" if grouped else "random",
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        _model(config),
        settings,
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=_lora() if case.lora else None,
    )
    clock, count = Clock(), Count(trainer.data_collator)
    trainer.data_collator = count
    trainer.add_callback(clock)
    trainer.train()
    found = figures(trainer, clock, count, case.accumulation)
    trainer.accelerator.free_memory()
    return found


_SDPA = {"attention": "sdpa"}  # what transformers takes by itself


def _lora() -> Any:
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )


def _by_hand(case: Case, steps: int, folder: Path) -> tuple[float, int, float]:
    """What one writes without any trainer: the same fused head, no logs, no guards."""
    config = case.config(steps, model=str(folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(config).train()
    add_fused_lm_head(model, outputs=("log_probs",))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    rows = rows_of(case, steps)
    losses, clock, labelled = [], Clock(), []
    for step in range(1, steps + 1):
        ids = np.stack(rows[(step - 1) * case.batch : step * case.batch])
        inputs = torch.from_numpy(ids).to(device, non_blocking=True)
        labelled.append(ids.size - len(ids))
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=inputs, labels=inputs, use_cache=False, fused_lm_head=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        clock.note(step, steps)
    total = float(sum(float(loss) * weight for loss, weight in zip(losses, labelled, strict=True)))
    return total / sum(labelled), case.batch * case.length * (steps - WARM), clock.seconds


_SIDES: Mapping[str, Callable[[Case, int, Path], tuple[float, int, float]]] = {
    OURS: _ours,
    COMPILED: functools.partial(_ours, compiled=True),
    TRL: _trl,
    TRL_LIGER: functools.partial(_trl, liger=True),
    TRL_GROUPED: functools.partial(_trl, grouped=True),
    HAND: _by_hand,
}
