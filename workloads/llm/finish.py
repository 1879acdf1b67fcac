"""Before and after the training itself: questions to the model, export, and what it all came to."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workloads.engine import distributed
from workloads.engine.finish import export_final, forget
from workloads.engine.hub.publish import push_final
from workloads.engine.summary import change, draw_curve, report_next, rows_of, series, show
from workloads.engine.training.checkpoints import gather_files
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import Stopped, TataraError
from workloads.llm.config import LlmConfig
from workloads.llm.data.prepare import load_rows
from workloads.llm.evaluate.score import Score, evaluate_gsm8k, merge_shards
from workloads.llm.export import export, refresh_card
from workloads.llm.model import load_for_use
from workloads.run import Run
from workloads.run.events import Event, Phase
from workloads.run.session import Session

BEFORE, AFTER = "before", "after"


def evaluate_before(
    config: LlmConfig,
    session: Session,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Ask the untrained model, once a run."""
    known = distributed.from_main((session.run.evaluation / BEFORE / "gsm8k.json").is_file())
    if config.evaluation.task and config.evaluation.before and not known:
        ask(config, session, model, tokenizer, BEFORE)


def finish(
    config: LlmConfig,
    session: Session,
    trainer: RunTrainer,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Export the trained model, ask it, and say what got better. All ranks take part."""
    training = _training_facts(config, session, trainer)
    forget(trainer)
    if config.export.enabled:
        export_final(session, export)
        if config.evaluation.task:
            _ask_exported(config, session)
    elif config.evaluation.task:
        session.tell("no evaluation after training: it asks the exported model (export.enabled)")
    if session.is_main:
        if session.run.final.is_dir():
            refresh_card(session.run)
        push_final(config, session)
        _tell(config, session, training)


def _ask_exported(config: LlmConfig, session: Session) -> None:
    """Ask the model in `final/`, on every rank that can see it."""
    sees = (session.run.final / "config.json").is_file()
    loaded = None
    if sees:
        loaded = load_for_use(str(session.run.final), config.train.precision, session.tell)
    ask(
        config,
        session,
        loaded.model if loaded else None,
        loaded.tokenizer if loaded else None,
        AFTER,
    )


def ask(
    config: LlmConfig,
    session: Session,
    model: Any,
    tokenizer: Any,
    name: str,
) -> None:
    """Put the held-out questions to the model, a share to each rank that has one."""
    out = session.run.evaluation / name
    able = [rank for rank, has in enumerate(distributed.gather(model is not None)) if has]
    score: Score | None = None
    problem: TataraError | None = None
    with session.phase(Phase.EVALUATING):
        try:
            if session.rank in able:
                shard = (able.index(session.rank), len(able))
                score = _ask(config, session, model, tokenizer, out, shard)
        except TataraError as error:
            problem = error
        if distributed.agree(isinstance(problem, Stopped)):
            raise Stopped("stopped while asking questions; the answers so far are kept")
        distributed.all_or_none(problem, "evaluation")
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


def _training_facts(config: LlmConfig, session: Session, trainer: RunTrainer) -> dict[str, str]:
    world = distributed.world_size()
    count = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    nodes = config.parallel.nodes
    where = f"{nodes} x {world // nodes} rank" + ("s" if world > nodes else "")
    return {
        "trained": f"{config.model.name}, {count:,} parameters, {config.adapter.method}",
        "on": f"{config.data.source}, {len(trainer.train_dataset):,} sequences",
        "how": f"{trainer.state.global_step} steps on {where}, {config.strategy(world)}, "
        f"{config.train.precision}, {trainer.args.device.type}",
    }


def _tell(config: LlmConfig, session: Session, training: dict[str, str]) -> None:
    """The summary that a run ends with."""
    run = session.run
    _, held_out = series(rows_of(run), "eval_loss")
    facts = list(training.items())
    if bad := _bad_rows(run):
        facts.append(("left out", f"{bad} bad rows; {run.path}/manifest.json names them"))
    if held_out:
        drop = change(held_out[0], held_out[-1])
        facts.append(("held-out loss", f"{drop}  (perplexity {_perplexity(held_out)})"))
    scores = {name: _score(run.evaluation / name) for name in (BEFORE, AFTER)}
    if scores[AFTER]:
        for key, label in _SCORES:
            values = [one.get(key) if one else None for one in scores.values()]
            facts.append((label, change(values[0], values[1], "{:.1%}")))
    curve = draw_curve(run)
    facts.append(("run", f"{run.path}/"))
    if run.final.is_dir():
        facts.append(("model", f"{run.final}/  (transformers loads it)"))
    if curve:
        facts.append(("curve", str(curve)))
    facts.append(report_next(run))
    show(f"{config.name}: done at {time.strftime('%H:%M:%S')}", facts, session.console)


_SCORES = (
    ("strict", "right answers (strict)"),
    ("flexible", "right answers (flexible)"),
    ("marked", "answers as #### N"),
)


def _score(folder: Path) -> dict[str, Any]:
    path = folder / "gsm8k.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _bad_rows(run: Run) -> int:
    """How many rows could not be used, as preparing them has found."""
    report = json.loads((run.path / "manifest.json").read_text()).get("data") or {}
    splits = [report.get("train"), report.get("evaluation")]
    return sum(len(split["bad_rows"]) for split in splits if split)


def _perplexity(losses: list[float]) -> str:
    return change(math.exp(min(losses[0], 50)), math.exp(min(losses[-1], 50)), "{:,.1f}")
