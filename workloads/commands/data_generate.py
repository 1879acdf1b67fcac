"""Write demonstrations of a simulated task to DIR, as CRANE-X7 recordings: data to train on.
The same seed gives the same demonstrations; where they are there already, nothing is done."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from workloads.commands.common import Ticker
from workloads.errors import EXIT_DONE, UserError

_LEAST = {"episodes": 1, "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", choices=["reach"], help="reach: the named cube")
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="a folder that is empty or not there"
    )
    parser.add_argument("--episodes", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from workloads.vla.reach.demonstrations import generate

    for name, least in _LEAST.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    made = generate(args.folder, args.episodes, args.seed, Ticker("episodes written"))
    print(f"{args.folder}: {args.episodes:,} episodes{'' if made else ', there already'}")
    return EXIT_DONE
