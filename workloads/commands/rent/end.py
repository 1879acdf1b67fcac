"""End a lease, or a machine of the account: stop, save, verify, terminate, see it gone.

Nothing is ended while the only copy may be on it, but with --discard.
"""

import argparse
from pathlib import Path

from workloads.commands.rent.beginning import carry_on
from workloads.commands.rent.finding import FoundLease, add_machine, find
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine(parser)
    parser.add_argument(
        "--discard", action="store_true", help="end it without a copy of what is on it"
    )
    parser.add_argument(
        "--from",
        dest="outputs",
        metavar="DIR",
        help="where runs lie on a machine that is no lease (default tatara/outputs)",
    )


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    found = find(args, env, only_rented=True)
    return _lease(args, env, found) if found.is_lease else _machine(args, env, found)


def _lease(args: argparse.Namespace, env: dict[str, str], found: FoundLease) -> int:
    import signal

    from workloads.rent.clock import Clock
    from workloads.rent.ledger import BEGINS
    from workloads.rent.machines import discard
    from workloads.rent.opening import end_watcher, lease_of
    from workloads.signals import Stop

    ledger = found.ledger
    if not ledger.is_open:
        print(f"{ledger.name}: it is over")
        return EXIT_DONE
    if args.discard and ledger.state not in BEGINS:
        discard(ledger, found.provider, print, Clock())
        return EXIT_DONE
    if process := end_watcher(ledger):
        print(f"asked process {process}, which watches it, to stop, save and end it")
        return EXIT_DONE
    stop = Stop()
    stop.on_signal(signal.SIGTERM, None)
    return carry_on(lease_of(ledger, env, stop, Clock(), found.provider))


def _machine(args: argparse.Namespace, env: dict[str, str], found: FoundLease) -> int:
    from workloads.rent.clock import Clock
    from workloads.rent.lease import end_machine
    from workloads.rent.machines import back_up
    from workloads.run import outputs

    ledger = found.ledger
    if not found.provider.bills:
        raise UserError(f"{args.machine}: expected a rented machine, found one that nobody bills")
    if args.discard:
        print(f"DISCARDED: what is on {ledger.name} alone goes with it")
    else:
        there = args.outputs or ledger.outputs_there
        names = list(back_up(found.remote, there, Path(outputs(env)), ledger, print))
        if not names:
            raise UserError(
                f"{args.machine}: expected runs in {there}, found none to save; name the folder "
                "with --from, or end it without a copy: --discard"
            )
        print(f"saved: {', '.join(names)}; what lies elsewhere on it goes with it")
    end_machine(found.provider, ledger.machine, print, Clock())
    print(f"ended, and seen gone: {ledger.name}")
    return EXIT_DONE
