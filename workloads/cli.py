"""The command `tatara`. Nothing heavy is imported before a command needs it."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from functools import reduce

from workloads.commands.parsing import (
    CommandParser,
    Commands,
    PrintCompletion,
    PrintVersion,
    UnwrappedHelpFormatter,
    add_commands,
    split_settings,
)
from workloads.environment import without_secrets
from workloads.errors import TataraError, file_problem
from workloads.signals import interruptible

COMMANDS: Commands = {
    "train": ("workloads.commands.train", "start a run, or go on with one (--resume)"),
    "submit": ("workloads.commands.submit", "hand a profile to slurm, sky or a trainjob"),
    "rent": ("workloads.commands.rent", "rent a machine, train, bring the run home, end it"),
    "check": ("workloads.commands.check", "find mistakes in a profile before any GPU is used"),
    "plan": ("workloads.commands.plan", "predict memory, disk, time and cost of a profile"),
    "models": ("workloads.commands.models", "list models, and what fits a GPU by method"),
    "eval": ("workloads.commands.evaluate", "score a run or a model on a task"),
    "chat": ("workloads.commands.chat", "talk to a language model in the terminal"),
    "generate": ("workloads.commands.generate", "answer the rows of a file with a language model"),
    "export": ("workloads.commands.export", "turn a run's checkpoint into a model folder"),
    "convert": ("workloads.commands.convert", "turn another tool's checkpoint into safetensors"),
    "import": ("workloads.commands.importing", "turn another tool's config into a profile"),
    "serve": ("workloads.commands.serve", "answer programs: a language model, or a robot policy"),
    "data": ("workloads.commands.data", "inspect demonstrations, convert them or make some"),
    "doctor": ("workloads.commands.doctor", "check what this machine can run and what it lacks"),
    "monitor": ("workloads.commands.monitor", "watch a run, or all of them"),
    "report": ("workloads.commands.report", "write a run's page, to keep or to send"),
    "verify": ("workloads.commands.verify", "verify a run, or a copy of it, by its digests"),
    "prune": ("workloads.commands.prune", "list what can be removed, and remove it with --yes"),
}
# After their PROFILE come settings, which the parser does not know.
_WITH_SETTINGS = (
    ("train",),
    ("submit",),
    ("check",),
    ("plan",),
    ("doctor",),
    ("rent", "lambda"),
    ("rent", "ssh"),
)
_EPILOG = """\
A PROFILE is a file such as profiles/demo.yaml, or its name. Settings follow it as
optim.learning_rate=1e-5 or, where the profile honours them, --learning_rate 1e-5.
`tatara COMMAND --help` has more on one command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; a user's mistake ends with one sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # In a locale that lacks a letter (EUC-JP, C) it is printed as \u30c4, as JSON has it too.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if arguments[0] == "help":  # as in git: help train
        arguments = [*arguments[1:], "--help"]
    return interruptible(lambda: _exit_code(arguments))


def _exit_code(arguments: list[str]) -> int:
    try:
        found, words = parse(arguments)
        code: int = found.main(found, words)
        return code
    except TataraError as error:
        # In a container these lines are its log.
        print(without_secrets(f"tatara: {error}", os.environ), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        problem = file_problem(error)
        if problem is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in its buffer has no room
        print(f"tatara: {problem}", file=sys.stderr)
        return problem.exit_code


def parser() -> CommandParser:
    """The parser of the whole command line; commands load when they are chosen."""
    whole = CommandParser(
        prog="tatara",
        description="Fine-tune language models, vision-language models and robot policies.",
        epilog=_EPILOG,
        formatter_class=UnwrappedHelpFormatter,
    )
    whole.add_argument("-V", "--version", action=PrintVersion, help="print the version and leave")
    whole.add_argument(
        "--print-completion", action=PrintCompletion, help="print the completion of a shell"
    )
    add_commands(whole, COMMANDS, "COMMAND")
    return whole


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line into its arguments and the settings that follow them."""
    whole, settings = parser(), list[str]()
    for names in _WITH_SETTINGS:
        if tuple(arguments[: len(names)]) == names:
            command = reduce(CommandParser.command, names, whole)
            own, settings = split_settings(command, arguments[len(names) :])
            command.refuse_misspelt(settings)
            arguments = [*names, *own]
    found, rest = whole.parse_known_args(arguments)
    if any(word.startswith("--") for word in rest):
        whole.chosen(arguments).refuse_misspelt(rest)
    return found, [*settings, *rest]


if __name__ == "__main__":
    sys.exit(main())
