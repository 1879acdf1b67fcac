"""The machine that a person names: a lease of this checkout, or one that was rented elsewhere."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.rent.ledger import Ledger
    from workloads.rent.provider import Provider
    from workloads.rent.remote import Remote


def add_machine(parser: argparse.ArgumentParser) -> None:
    """MACHINE, and how ssh gets to one that is no lease of this checkout."""
    parser.add_argument(
        "machine",
        metavar="MACHINE",
        help="a lease by its name or run; a machine of the account by its name, id or address; or "
        "[user@]host",
    )
    add_access(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", default="", metavar="FILE", help="private key of ssh")
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="as ssh -o takes it"
    )


@dataclass(frozen=True)
class FoundLease:
    """ledger: of the lease, or a stand-in for a machine that is none."""

    ledger: "Ledger"
    remote: "Remote"
    provider: "Provider"
    is_lease: bool


def find(args: argparse.Namespace, env: dict[str, str], only_rented: bool = False) -> FoundLease:
    """The lease or machine of that name.

    Any other name is a host that ssh knows; UserError where only what is rented counts.
    """
    from workloads.rent.clock import Clock
    from workloads.rent.ledger import ledgers
    from workloads.rent.machines import ledger_named, machine_named
    from workloads.rent.opening import KEY, cloud, provider_of, remote_of
    from workloads.rent.own_machine import OwnMachine
    from workloads.rent.remote import Remote
    from workloads.run import outputs

    word = args.machine
    ledger = ledger_named(ledgers(outputs(env).absolute()), word)
    if ledger is not None:
        return FoundLease(ledger, remote_of(ledger), provider_of(ledger, env, Clock()), True)
    options = tuple(args.ssh_option)
    user, _, host = word.rpartition("@")
    if not host or host.startswith("-"):
        raise UserError(f"expected MACHINE as a name or [user@]host, found {word!r}; correct it")
    if env.get(KEY):
        provider = cloud(env, Clock())
        try:
            machine = machine_named(provider, host)
        except UserError:
            if only_rented:
                raise
        else:
            remote = Remote(machine.address, user or "ubuntu", None, args.identity, options)
            stand_in = _stand_in(machine.name or machine.id, "lambda", machine.id, machine.price)
            return FoundLease(stand_in, remote, provider, False)
    remote = Remote(host, user, None, args.identity, options)
    return FoundLease(_stand_in(host, "ssh", host, 0.0), remote, OwnMachine(host), False)


def _stand_in(name: str, provider: str, machine: str, price: float) -> "Ledger":
    from workloads.rent.ledger import Ledger

    return Ledger(
        name,
        provider,
        profile="",
        run_id="",
        root="",
        copy="",
        checkout="",
        machine=machine,
        price=price,
    )
