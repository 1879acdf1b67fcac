"""Say how a lease or a machine is now: phase and step, what is saved, what it costs."""

import argparse

from workloads.commands.rent.finding import add_machine, find
from workloads.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_machine(parser)


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    from dataclasses import replace

    from workloads.monitor.numbers import date_text
    from workloads.rent.clock import Clock
    from workloads.rent.machines import runs_there
    from workloads.rent.provider import dollars
    from workloads.rent.watch import look, progress_text

    found, now = find(args, env), Clock().time()
    ledger = found.ledger
    if not found.is_lease:
        runs = runs_there(found.remote, ledger.outputs_there)
        print(f"{ledger.name}: {', '.join(runs) or 'no run'} in {ledger.outputs_there}")
        for run in runs:
            profile, _, run_id = run.partition("/")
            place = replace(ledger, profile=profile, run_id=run_id)
            facts = look(found.remote, place)
            print(
                f"{run}: {facts['phase']}, step {facts['step']}; {len(facts['sealed'])} checkpoints"
            )
        return EXIT_DONE
    watcher = ledger.watcher()
    print(f"{ledger.name}: {ledger.state}, {f'watched by {watcher}' if watcher else 'unwatched'}")
    if ledger.machine and ledger.is_open:
        machine = found.provider.machine(ledger.machine)
        print(f"{ledger.type} at {ledger.address}: {machine.status if machine else 'gone'}")
        print(progress_text(ledger, look(found.remote, ledger), now))
    if ledger.deadline:
        print(f"deadline: {date_text(ledger.deadline)}")
    print(f"copy: {ledger.copy}, newest that is whole: {ledger.verified or 'none'}")
    if ledger.bills:
        print(f"{dollars(ledger.cost(now))} {'so far' if ledger.is_open else 'in all'}")
    return EXIT_DONE
