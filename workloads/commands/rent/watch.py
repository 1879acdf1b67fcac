"""Go on with a lease whose watcher was killed, from wherever its ledger stands."""

import argparse

from workloads.commands.rent.beginning import carry_on, detach
from workloads.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lease", metavar="LEASE", help="its name or run")
    parser.add_argument("--detach", action="store_true", help="watch in the background")


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    from workloads.rent.clock import Clock
    from workloads.rent.ledger import ledgers
    from workloads.rent.machines import ledger_named
    from workloads.rent.opening import lease_of
    from workloads.run import outputs
    from workloads.signals import Stop

    every = ledgers(outputs(env).absolute())
    ledger = ledger_named(every, args.lease)
    if ledger is None:
        names = ", ".join(item.name for item in every if item.is_open) or "none is open"
        raise UserError(f"expected a lease of this checkout, found {args.lease!r}; {names}")
    if not ledger.is_open:
        raise UserError(f"{ledger.name}: expected an open lease, found one that is over; see list")
    if args.detach:
        return detach(ledger)
    return carry_on(lease_of(ledger, env, Stop(), Clock()))
