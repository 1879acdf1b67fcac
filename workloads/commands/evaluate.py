"""Score a model on TASK; `tatara eval TASK --help` lists what the task takes."""

import argparse
import importlib
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import UserError

# task → module with `add_arguments(parser)` and `main(args, env) -> exit code`
TASKS = {
    "gsm8k": "workloads.llm.evaluate.command",
    "superclevr": "workloads.grpo.evaluate.command",
    "geoqa": "workloads.grpo.evaluate.command",
    "reach": "workloads.vla.reach.command",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"tatara eval {{{','.join(TASKS)}}} …"
    parser.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    # All that follows is for TASK, --help too.
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help=argparse.SUPPRESS)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    if args.task not in TASKS:
        raise UserError(f"unknown task {args.task!r}; tasks: {', '.join(TASKS)}")
    env = loaded_environment()
    task = importlib.import_module(TASKS[args.task])
    parser = argparse.ArgumentParser(prog=f"tatara eval {args.task}", description=task.__doc__)
    parser.set_defaults(task=args.task)
    task.add_arguments(parser)
    options, rest = parser.parse_known_args([*args.rest, *words])
    no_settings(rest)
    code: int = task.main(options, env)
    return code
