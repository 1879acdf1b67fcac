"""Before and after the training: evaluation, export, summary."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workloads.engine import distributed
from workloads.engine import finish as engine_finish
from workloads.engine.summary import change, course, rows_of, series
from workloads.engine.training.checkpoints import gather_files
from workloads.engine.training.trainer import RunTrainer
from workloads.llm.config import LlmConfig
from workloads.llm.data.prepare import load_rows
from workloads.llm.evaluate.score import Score, evaluate_gsm8k, merge_shards
from workloads.llm.export import EXPORTER
from workloads.llm.model import Loaded, load_for_use
from workloads.processes import own_command
from workloads.run import Run
from workloads.run.events import Event, Phase
from workloads.run.session import Session

BEFORE, AFTER = "before", "after"
_SCORES = (
    ("strict", "right answers (strict)"),
    ("flexible", "right answers (flexible)"),
    ("marked", "answers as #### N"),
)


def evaluate_before(
    config: LlmConfig,
    session: Session,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Evaluate the untrained model, once a run."""
    known = distributed.from_main((session.run.evaluation / BEFORE / "gsm8k.json").is_file())
    if config.evaluation.task and config.evaluation.before and not known:
        ask(config, session, model, tokenizer, BEFORE)


def finish(config: LlmConfig, session: Session, trainer: RunTrainer) -> None:
    """Export the trained model, evaluate it, and summarise what got better. All ranks take part."""
    rows = f"{config.data.named}, {len(trainer.train_dataset):,} sequences"
    engine_finish.finish(
        session,
        trainer,
        EXPORTER,
        engine_finish.training_facts(trainer, rows),
        results=lambda: _results(session.run),
        evaluate=(lambda: _ask_exported(config, session)) if config.evaluation.task else None,
    )


def _ask_exported(config: LlmConfig, session: Session) -> None:
    """Evaluate the model in `final/`, on every rank that can read it."""

    def load() -> Loaded | None:
        if not session.run.final.is_dir():
            return None
        return load_for_use(str(session.run.final), config.train.precision, session.report)

    loaded = distributed.together(load, "evaluation")
    ask(config, session, loaded and loaded.model, loaded and loaded.tokenizer, AFTER)


def ask(
    config: LlmConfig,
    session: Session,
    model: Any,
    tokenizer: Any,
    name: str,
) -> None:
    """Evaluate the model on held-out questions, a share on each rank that has a model."""
    out = session.run.evaluation / name
    able = [rank for rank, has in enumerate(distributed.gather(model is not None)) if has]

    def answer() -> Score | None:
        if session.rank not in able:
            return None
        shard = (able.index(session.rank), len(able))
        return _ask(config, session, model, tokenizer, out, shard)

    with session.phase(Phase.EVALUATING):
        score = distributed.together(answer, "evaluation")
        if not session.shared:
            gather_files(session, out)
        if session.is_main and score is not None:
            whole = merge_shards(out, score.fingerprint, config.evaluation, score.seconds)
            session.event(Event.EVALUATED, when=name, **whole.as_dict())
        distributed.barrier()


def _ask(
    config: LlmConfig,
    session: Session,
    model: Any,
    tokenizer: Any,
    out: Path,
    shard: tuple[int, int],
) -> Score:
    rows = list(load_rows(config.data, "eval"))
    if torch.cuda.is_available():
        model.to(f"cuda:{session.local_rank}")

    def progress(done: int, of: int) -> None:
        session.progress()
        if session.is_main:
            line = f"\r\x1b[K{out.name}: {done} of {of} questions"
            live = session.console.isatty()
            print(line if live else "", end="", file=session.console, flush=True)

    few_shot = config.evaluation.style == "few_shot"
    examples = list(load_rows(config.data, "train")) if few_shot else ()
    return evaluate_gsm8k(
        model,
        tokenizer,
        rows,
        config.evaluation,
        out,
        data=config.data,
        examples=examples,
        shard=shard,
        should_stop=lambda: session.stop_signal,
        progress=progress,
    )


def _results(run: Run) -> engine_finish.Facts:
    _, held_out = series(rows_of(run), "eval_loss")
    facts = []
    if bad := _bad_rows(run):
        facts.append(("left out", f"{bad} bad rows; {run.path}/manifest.json names them"))
    if held_out:
        perplexity = course([math.exp(min(loss, 50)) for loss in held_out], "{:,.1f}")
        facts.append(("held-out loss", f"{course(held_out)}  (perplexity {perplexity})"))
    before, after = (_score(run.evaluation / name) for name in (BEFORE, AFTER))
    if after:
        facts += [
            (label, change(before.get(key), after.get(key), "{:.1%}")) for key, label in _SCORES
        ]
    if run.final.is_dir():
        facts.append(("talk to it", own_command("chat", str(run.path))))
    return facts


def _score(folder: Path) -> dict[str, Any]:
    path = folder / "gsm8k.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _bad_rows(run: Run) -> int:
    """Number of unusable rows found in preparation."""
    report = json.loads((run.path / "manifest.json").read_text()).get("data") or {}
    splits = [report.get("train"), report.get("evaluation")]
    return sum(len(split["bad_rows"]) for split in splits if split)
