"""GSM8K on the exported model of a run, or on any model by folder or hub id.

Scores are counted as lm-evaluation-harness counts them. The same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workloads.errors import EXIT_DONE, UserError
from workloads.llm.config import LlmData, LlmEvaluation
from workloads.run import Run, find, outputs
from workloads.signals import Stop, handled_by, interrupt

# The public data set, asked the way verl asks it.
GSM8K = LlmData(source="openai/gsm8k", subset="main", eval_split="test")
_NUMBERS = {
    "shots": "worked examples before each few_shot question",
    "rows": "ask only the first so many questions",
    "batch_size": "questions at a time",
    "max_new_tokens": "longest answer",
}
_FLAGS = ("style", *_NUMBERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="a run's folder, its id, or latest: its final/ is asked")
    what.add_argument("--model", help="a model's folder or hub id")
    parser.add_argument("--data", help="JSONL, Parquet or CSV file, or hub id (default: the run's)")
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp32"], help="default: the run's")
    parser.add_argument("--out", type=Path, help="folder of the answers")
    parser.add_argument(
        "--style", choices=["chat", "few_shot"], help="how a question is put (default: the run's)"
    )
    for name, text in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, type=int, metavar="N", help=text)


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    """Ask, score and print a table."""
    run = find(outputs(env), "*", args.run) if args.run else None
    config = run.config() if run else None
    data: LlmData = config.data if config else GSM8K.model_copy(update={"prompt_suffix": _suffix()})
    if args.data:
        own = {"source": args.data, "subset": None, "eval_source": args.data, "eval_rows": 0}
        data = data.model_copy(update=own)
    given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
    settings: LlmEvaluation = config.evaluation if config else LlmEvaluation()
    settings = _changed(settings, given)
    name = str(_final(run)) if run else args.model
    precision = args.precision or (config.train.precision if config else "bf16")
    out = args.out or (run.evaluation / "eval" if run else _folder(env, args.model))
    return _ask(name, precision, data, settings, out)


def _changed(settings: LlmEvaluation, given: dict[str, Any]) -> LlmEvaluation:
    """The settings with what the command line says."""
    try:
        return LlmEvaluation.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        (first, *_) = error.errors()
        flag = str(first["loc"][0]).replace("_", "-")
        text = first["msg"].removeprefix("Input should be ")
        raise UserError(f"--{flag}: expected a number {text}, found {first['input']}") from None


def _suffix() -> str:
    from workloads.llm.evaluate.gsm8k import CHAT_SUFFIX

    return f" {CHAT_SUFFIX}"


def _final(run: Run) -> Path:
    if not run.final.is_dir():
        raise UserError(
            f"{run.path}: expected an exported model in final/, found none; do: "
            f"tatara export {run.path}"
        )
    return run.final


def _folder(env: dict[str, str], model: str) -> Path:
    return outputs(env) / "eval" / model.strip("/.").replace("/", "--")


def _ask(name: str, precision: str, data: LlmData, settings: LlmEvaluation, out: Path) -> int:
    from rich.console import Console

    from workloads.llm.data.rows import load_rows
    from workloads.llm.evaluate.score import evaluate_gsm8k, table
    from workloads.llm.model import load_for_use

    rows = list(load_rows(data, "eval"))
    if not rows:
        raise UserError(f"{data.source}: expected held-out rows, found none; name a file by --data")
    examples = list(load_rows(data, "train")) if settings.style == "few_shot" else []
    loaded = load_for_use(name, precision, _tell)
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
            progress=_progress,
            tell=_tell,
        )
    _tell("")
    Console().print(table({name: score}))
    print(f"answers: {out}/gsm8k-{score.fingerprint}.jsonl")
    return EXIT_DONE


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{done} of {of} questions", end="", file=sys.stderr, flush=True)


def _tell(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
