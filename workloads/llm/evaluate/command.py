"""GSM8K on the exported model of a run, or on any model by folder or hub id.

Scores are those of lm-evaluation-harness. The same command resumes where it stopped.
"""

import argparse
from typing import Any

from pydantic import ValidationError

from workloads.engine.evaluate_command import Progress, Target, add_target, say, target_of
from workloads.errors import EXIT_DONE, UserError
from workloads.llm.config import LlmData, LlmEvaluation
from workloads.signals import Stop, handled_by, interrupt

# The public dataset, with verl's prompt.
GSM8K = LlmData(source="openai/gsm8k", subset="main", eval_split="test")
_NUMBERS = {
    "shots": "worked examples before each few_shot question",
    "rows": "ask only the first so many questions",
    "batch_size": "questions at a time, or auto",
    "max_new_tokens": "longest answer",
}
_FLAGS = ("style", *_NUMBERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser, "folder of the answers")
    parser.add_argument("--data", help="JSONL, Parquet or CSV file, or hub id (default: the run's)")
    parser.add_argument(
        "--style", choices=["chat", "few_shot"], help="form of the prompts (default: the run's)"
    )
    for name, text in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        kind = _size if name == "batch_size" else int
        parser.add_argument(flag, dest=name, type=kind, metavar="N", help=text)


def _size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    """Generate answers, score them and print a table."""
    target = target_of(args, env, "llm")
    config = target.run.config() if target.run else None
    if config:
        data: LlmData = config.data
    else:
        from workloads.llm.evaluate.gsm8k import CHAT_SUFFIX

        data = GSM8K.model_copy(update={"prompt_suffix": f" {CHAT_SUFFIX}"})
    if args.data:
        own = {"source": args.data, "subset": None, "eval_source": args.data, "eval_rows": 0}
        data = data.model_copy(update=own)
    given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
    settings: LlmEvaluation = config.evaluation if config else LlmEvaluation()
    settings = _changed(settings, given)
    return _ask(target, data, settings)


def _changed(settings: LlmEvaluation, given: dict[str, Any]) -> LlmEvaluation:
    """The settings with what the command line says."""
    try:
        return LlmEvaluation.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        (first, *_) = error.errors()
        flag = str(first["loc"][0]).replace("_", "-")
        text = first["msg"].removeprefix("Input should be ")
        raise UserError(f"--{flag}: expected a number {text}, found {first['input']}") from None


def _ask(target: Target, data: LlmData, settings: LlmEvaluation) -> int:
    from rich.console import Console

    from workloads.llm.data.rows import load_rows
    from workloads.llm.evaluate.score import evaluate_gsm8k, table
    from workloads.llm.model import load_for_use

    rows = list(load_rows(data, "eval"))
    if not rows:
        raise UserError(f"{data.named}: expected held-out rows, found none; name a file by --data")
    examples = list(load_rows(data, "train")) if settings.style == "few_shot" else []
    loaded = load_for_use(target.name, target.precision, say)
    out = target.output or target.folder
    progress = Progress("questions")
    stop = Stop(at_once=interrupt)
    with handled_by(stop.on_signal):
        score = evaluate_gsm8k(
            loaded.model,
            loaded.tokenizer,
            rows,
            settings,
            out,
            data=data,
            examples=examples,
            should_stop=stop,
            progress=progress,
            report=say,
        )
    progress.clear()
    Console().print(table({target.name: score}))
    print(f"answers: {out}/gsm8k-{score.fingerprint}.jsonl")
    return EXIT_DONE
