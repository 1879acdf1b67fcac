"""The command `tatara`. Nothing heavy is imported before a verb needs it."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from workloads.errors import EXIT_STOPPED, TataraError, UserError

# verb → (module with `add_arguments(parser)` and `main(args, words) -> exit code`, what it does)
VERBS = {
    "train": ("workloads.commands.train", "start a run, or go on with one (--resume)"),
    "check": ("workloads.commands.check", "find mistakes in a profile before any GPU is used"),
    "plan": ("workloads.commands.plan", "predict memory and disk of a profile"),
    "eval": ("workloads.commands.evaluate", "score a run or a model on a task"),
    "export": ("workloads.commands.export", "turn a run's checkpoint into a model folder"),
    "serve": ("workloads.commands.serve", "answer a robot's program with a policy's actions"),
    "data": ("workloads.commands.data", "look at demonstrations, or convert them"),
    "doctor": ("workloads.commands.doctor", "say what this machine can run and what it lacks"),
    "monitor": ("workloads.commands.monitor", "watch a run, or all of them"),
    "report": ("workloads.commands.report", "write a run's page, to keep or to send"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; a mistake of the user's ends with one sentence."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    try:
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}; verbs: {', '.join(VERBS)}")
        return run_verb(verb, words[1:])
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tatara: stopped", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def usage() -> str:
    """The page that `tatara --help` prints."""
    lines = [f"  {verb:<8} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: tatara VERB …   (tatara VERB --help for one verb)",
            "",
            *lines,
            "",
            "A PROFILE is a file such as profiles/demo.yaml. Settings follow it as",
            "optim.learning_rate=1e-5 or, where the profile honours them, --learning_rate 1e-5.",
        ]
    )


def run_verb(verb: str, words: list[str]) -> int:
    """Parse a verb's own arguments and run it; what is left over are settings."""
    module = importlib.import_module(VERBS[verb][0])
    parser = argparse.ArgumentParser(
        prog=f"tatara {verb}", description=module.__doc__, allow_abbrev=False
    )
    module.add_arguments(parser)
    args, rest = parser.parse_known_args(words)
    code: int = module.main(args, rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
