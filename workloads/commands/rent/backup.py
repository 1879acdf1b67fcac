"""Copy runs home now, sealed checkpoints first, and verify every digest; what is damaged is copied
again."""

import argparse
from pathlib import Path

from workloads.commands.rent.finding import add_machine, find
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine(parser)
    parser.add_argument(
        "--from",
        dest="outputs",
        metavar="DIR",
        help="where runs lie over there (default: the lease's, or tatara/outputs)",
    )


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    from workloads.rent.machines import back_up
    from workloads.run import outputs

    found = find(args, env)
    there = args.outputs or found.ledger.outputs_there
    # A ledger's own copy is where its run is looked for.
    here = Path(found.ledger.copy).parent.parent if found.is_lease else outputs(env)
    names = list(back_up(found.remote, there, here, found.ledger, print))
    if not names:
        raise UserError(
            f"{args.machine}: expected runs in {there}, found none; name it with --from"
        )
    return EXIT_DONE
