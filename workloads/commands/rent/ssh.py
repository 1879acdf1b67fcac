"""Open a shell on MACHINE; with a PROFILE: train on it as on a rented one, and leave it running.

MACHINE is a lease, a machine of the account by name, id or address, or any host that ssh knows:
user@host. Nothing is billed or ended.
"""

import argparse
import os
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, no_settings
from workloads.commands.rent.beginning import add_common, begin, check_amounts, new_ledger
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="MACHINE", help="a lease, or [user@]host")
    parser.add_argument(
        "profile", nargs="?", metavar="PROFILE", help="file, or name of one in profiles/"
    )
    parser.add_argument(
        "--hours", type=float, default=0, metavar="H", help="stop and save after this (default: no)"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs that must compute (default: none)"
    )
    add_common(parser)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    env = loaded_environment()
    if args.profile is None:
        no_settings(words)
        _check_is_shell(args)
        return _shell(args, env)
    from workloads.rent.provider import Request

    check_amounts(args)
    user, _, address = args.machine.rpartition("@")
    if not address or address.startswith("-"):
        raise UserError(f"expected MACHINE as [user@]host, found {args.machine!r}; correct it")
    ledger, profile = new_ledger(
        args,
        words,
        env,
        Request(types=(address,), hours=args.hours),
        provider="ssh",
        machine=address,
        address=address,
        user=user,
        gpus=args.gpus,
    )
    if args.dry_run:
        for number, step in enumerate(_steps(ledger.copy, args), 1):
            print(f"{number}. {step}")
        return EXIT_DONE
    return begin(args, ledger, profile, env, [f"on {args.machine}, which is yours: no bill"])


def _steps(copy: str, args: argparse.Namespace) -> tuple[str, ...]:
    return (
        f"reach {args.machine} by ssh",
        f"send what git lists into {args.folder}/, secrets into memory",
        f"take {args.python}" if args.python else "set up the environment",
        "ask the doctor, then train, detached",
        f"copy each checkpoint into {copy}; at the end the rest, and verify every digest",
    )


def _check_is_shell(args: argparse.Namespace) -> None:
    """UserError where an option says that a training was meant."""
    names = ("dry_run", "detach", "hours", "gpus", "resume", "python")
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(args, name, None))
    if given:
        raise UserError(
            f"expected MACHINE and a PROFILE with {given}, found {args.machine!r} alone; name the "
            "profile, or leave the options out for a shell"
        )


def _shell(args: argparse.Namespace, env: dict[str, str]) -> int:
    from workloads.commands.rent.finding import find
    from workloads.rent.remote import harmless

    found = find(args, env)
    # A person may type a passphrase.
    words = [word.replace("BatchMode=yes", "BatchMode=no") for word in found.remote.ssh()]
    os.execvpe(words[0], [*words, "-t", found.remote.target], harmless(os.environ))
