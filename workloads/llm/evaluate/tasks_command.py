"""Tasks of lm-evaluation-harness on a run or a model: by name, or your own from a file.

Prompts of a file of rows (question, answer, and choices for multiple choice) are as in training; a
YAML file is a task in the harness's own form. Scores and answers go into the run.
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.engine.evaluate_command import Target, add_target, say, target_of
from workloads.errors import EXIT_DONE, UserError
from workloads.llm.evaluate.task_files import ROWS, OwnTask, read_task

if TYPE_CHECKING:
    from workloads.llm.evaluate.harness import Scores

_YAML = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = add_target(parser, "folder of the scores and answers")
    what.add_argument(
        "--list",
        action="store_true",
        help="print the task files and datasets that the names stand for, and run nothing",
    )
    parser.add_argument(
        "--tasks",
        required=True,
        metavar="NAME,…|FILE",
        help="names of tasks and groups, or files: rows (.jsonl, .csv) or the harness's .yaml",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N of each task")
    parser.add_argument(
        "--shots", type=int, metavar="N", help="worked examples before a question of named tasks"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="named tasks as plain text, without the model's chat template",
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions at once")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="longest answer of own tasks"
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    """Score and print a table. Raises UserError for a task that is missing or cannot be loaded."""
    for flag in ("limit", "shots", "batch_size", "max_new_tokens"):
        value = getattr(args, flag)
        if value is not None and value < (0 if flag == "shots" else 1):
            raise UserError(f"--{flag.replace('_', '-')}: expected a number over 0, found {value}")
    names, own = _tasks(args.tasks, args.limit)
    if find_spec("lm_eval") is None:
        raise UserError(
            "eval tasks: expected the package lm_eval (lm-evaluation-harness), found none; "
            "pip install 'tatara[eval]' (or lm_eval) into this environment"
        )
    if args.list:
        from workloads.llm.evaluate.harness import task_list

        for line in task_list(names):
            print(line)
        for task in own:
            print(f"{task.name}: {len(task.questions)} questions of your file")
        return EXIT_DONE
    target = target_of(args, env, "llm")
    scores = _run(args, target, names, own)
    out = args.output or target.folder
    for score in scores:
        score.write(out)
    if args.json:
        print(json.dumps([score.facts for score in scores], ensure_ascii=False, indent=1))
        return EXIT_DONE
    _print(target.name, scores)
    print(f"scores and answers: {out}/")
    return EXIT_DONE


def _tasks(text: str, limit: int | None) -> tuple[list[str], list[OwnTask]]:
    """Split into names for the harness, with its YAML files, and tasks from files of rows."""
    names, own = list[str](), list[OwnTask]()
    for name in filter(None, (part.strip() for part in text.split(","))):
        path = Path(name).expanduser()
        suffix = Path(name.removesuffix(".gz")).suffix
        if suffix in (*ROWS, *_YAML) and not path.is_file():
            raise UserError(f"--tasks: expected a file at {path}, found none")
        if suffix in ROWS:
            own.append(read_task(path, limit))
        else:
            names.append(str(path) if suffix in _YAML else name)
    if not names and not own:
        raise UserError("--tasks: expected names of tasks or files, found none")
    known = [task.name for task in own]
    if twice := [name for name in known if known.count(name) > 1]:
        raise UserError(f"--tasks: two files are called {twice[0]}; rename one")
    return names, own


def _run(
    args: argparse.Namespace, target: Target, names: list[str], own: list[OwnTask]
) -> "list[Scores]":
    from workloads.llm.evaluate.harness import Harness, named_tasks
    from workloads.llm.speaker import load

    tasks = named_tasks(names) if names else []
    config = target.run.config() if target.run else None
    speaker = load(target.name, target.precision, say, config.data if config else None)
    harness = Harness(speaker, args.batch_size, args.limit)
    started = time.monotonic()
    scores = harness.own(own, args.max_new_tokens) if own else []
    scores += harness.named(tasks, args.shots, args.plain) if tasks else []
    say(f"{len(scores)} tasks in {time.monotonic() - started:.0f} s")
    return scores


def _print(name: str, scores: "list[Scores]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("task", "rows", "measure", "score", "± (standard error)"):
        table.add_column(head, justify="right" if head in ("rows", "score") else "left")
    for score in scores:
        for measure, value in score.measures.items():
            error = score.errors.get(measure)
            spread = f"{error:.1%}" if isinstance(error, float) else ""
            table.add_row(score.task, str(score.rows), measure, f"{value:.1%}", spread)
    print(name)
    Console().print(table)
