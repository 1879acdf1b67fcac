"""Print what a lease's training prints over there, or its copy here once the machine is gone."""

import argparse
import subprocess

from workloads.commands.rent.finding import add_machine, find
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    parser.add_argument(
        "-n", "--lines", type=int, default=50, metavar="N", help="the last so many (default 50)"
    )


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    import os

    from workloads.rent import job
    from workloads.rent.remote import harmless

    found = find(args, env)
    if not found.is_lease:
        raise UserError(
            f"{args.machine}: expected a lease of this checkout, found a machine; its runs' logs: "
            f"tatara rent backup {args.machine}, then tatara monitor"
        )
    if not found.ledger.is_open:
        log = found.ledger.path / "job" / "log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        print("\n".join(lines[-args.lines :]))
        return EXIT_DONE
    script = job.log(found.ledger, args.lines, args.follow)
    words = [*found.remote.ssh(), found.remote.target, script]
    return subprocess.run(words, env=harmless(os.environ)).returncode
