"""List leases of this checkout and machines of the account, with what each costs.

Ends with 1 where something runs that nobody watches.
"""

import argparse
from typing import TYPE_CHECKING, Any

from workloads.commands.common import print_json
from workloads.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from workloads.rent.ledger import Ledger
    from workloads.rent.provider import RentedMachine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="leases that are over, too")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    from workloads.monitor.numbers import date_text
    from workloads.rent.clock import Clock
    from workloads.rent.ledger import deadline_in, ledgers
    from workloads.rent.opening import KEY, cloud
    from workloads.rent.provider import dollars
    from workloads.run import outputs

    now = Clock().time()
    machines = cloud(env, Clock()).machines() if env.get(KEY) else []
    every = ledgers(outputs(env).absolute())
    found = [_of_lease(element, now) for element in every if args.all or element.is_open]
    leased = {element.machine for element in every}
    for machine in machines:
        if machine.id not in leased:
            found.append(_of_machine(machine, deadline_in(machine.name)))
    if args.json:
        print_json(found)
    for item in found if not args.json else ():
        cost = "no bill"
        if item["price"]:
            cost = f"{dollars(item['price'])} an hour"
        if item["cost"]:
            cost += f", {dollars(item['cost'])} until now"
        end = f"until {date_text(item['deadline'])}" if item["deadline"] else "no deadline"
        print(f"{item['name']}  {item['state']}  {item['address'] or '-'}  {cost}  {end}")
        print(f"  {item['note']}")
    if not found and not args.json:
        print(
            "no lease is open" + ("" if env.get(KEY) else f"; without {KEY} no account was asked")
        )
    return EXIT_FAILED if any(item["unwatched"] for item in found) else EXIT_DONE


def _of_lease(ledger: "Ledger", now: float) -> dict[str, Any]:
    watcher = ledger.watcher()
    note = f"watched by process {watcher}" if watcher else "over"
    if unwatched := ledger.is_open and not watcher:
        note = f"NOBODY WATCHES IT; go on: tatara rent watch {ledger.name}"
    saved = f"; saved here: {ledger.verified or 'nothing'}"
    return {
        "name": ledger.name,
        "state": str(ledger.state),
        "machine": ledger.machine,
        "address": ledger.address,
        "price": ledger.price,
        "cost": ledger.cost(now),
        "deadline": ledger.deadline or None,
        "unwatched": unwatched,
        "note": note + saved,
    }


def _of_machine(machine: "RentedMachine", deadline: float | None) -> dict[str, Any]:
    return {
        "name": machine.name or machine.id,
        "state": machine.status,
        "machine": machine.id,
        "address": machine.address,
        "price": machine.price,
        "cost": 0.0,
        "deadline": deadline,
        "unwatched": False,
        "note": f"no lease of this checkout; end it: tatara rent end {machine.id}",
    }
