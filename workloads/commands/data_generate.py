"""Write data to DIR to begin with: demonstrations of a simulated task as CRANE-X7 recordings, or
questions about drawn scenes in the form of R1-V's files, for `tatara eval superclevr`. The same
seed gives the same data; where they are there already, nothing is done."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from workloads.commands.common import Ticker
from workloads.errors import EXIT_DONE, UserError

_LEAST = {"episodes": 1, "count": 1, "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        metavar="TASK",
        choices=["reach", "recall", "questions"],
        help="reach: the named cube; recall: the cube that is lit in the first frames; "
        "questions: how many items an image shows",
    )
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="a folder that is empty or not there"
    )
    parser.add_argument(
        "--episodes", type=int, default=8000, help="reach, recall; default: %(default)s"
    )
    parser.add_argument("--count", type=int, default=200, help="questions; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    for name, least in _LEAST.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    if args.task == "questions":
        return _questions(args)
    from workloads.vla.reach.demonstrations import generate

    made = generate(args.folder, args.episodes, args.seed, Ticker("episodes written"), args.task)
    print(f"{args.folder}: {args.episodes:,} episodes{'' if made else ', there already'}")
    return EXIT_DONE


def _questions(args: argparse.Namespace) -> int:
    from workloads.grpo.data.rows import write_questions

    made = write_questions(args.folder, args.count, args.seed)
    print(f"{args.folder}: {args.count:,} questions{'' if made else ', there already'}")
    return EXIT_DONE
