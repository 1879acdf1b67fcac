"""Machines beside the leases of this checkout: found, backed up, ended, and reaped.

A machine that was rented in the console is not ours: it is touched only by name.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from workloads.errors import TataraError, UserError, did_you_mean
from workloads.rent.backup import Backup
from workloads.rent.clock import Clock
from workloads.rent.lease import Lease, LeftRunning, end, end_machine
from workloads.rent.ledger import Ledger, State, deadline_in
from workloads.rent.provider import LOST, Provider, RentedMachine
from workloads.rent.remote import Remote
from workloads.rent.watch import look

_SALVAGE = 900.0  # seconds after a deadline for its watcher to copy work home
_COPY_SECONDS = 24 * 3600.0
_RUNS = """\
cd {folder} 2>/dev/null || exit 0
find -L . -mindepth 3 -maxdepth 3 -name config.json -not -path '*/.*/*'
"""


def ledger_named(ledgers: Sequence[Ledger], word: str) -> Ledger | None:
    """The newest lease by its name, run, machine or address."""
    for ledger in reversed(ledgers):
        names = (ledger.name, ledger.label, ledger.run_id, ledger.machine, ledger.address)
        if word and word in names:
            return ledger
    return None


def machine_named(provider: Provider, word: str) -> RentedMachine:
    """A machine of the account by its name, id or address; raises UserError that lists them."""
    found = provider.machines()
    for machine in found:
        if word in (machine.name, machine.id, machine.address):
            return machine
    names = [machine.name or machine.id for machine in found]
    near = did_you_mean(word, names) if names else "the account has none"
    raise UserError(
        f"expected a lease of this checkout or a machine of the account, found {word!r}; {near}"
    )


def runs_there(remote: Remote, outputs: str) -> list[str]:
    """`<profile>/<run>` of every run in a folder on the machine. Raises UserError if unreadable."""
    answer = remote.run(_RUNS.format(folder=shlex.quote(outputs)))
    if answer.code:
        raise TataraError(f"{remote.target}: {outputs} cannot be read: {answer.reason}")
    return sorted(str(Path(line).parent) for line in answer.out.splitlines())


def back_up(
    remote: Remote, there: str, outputs: Path, ledger: Ledger, say: Callable[[str], None]
) -> Iterator[str]:
    """Copy runs of a folder on the machine into outputs here, verified; returns their names.

    ledger: of a lease, for its own run, or a stand-in without a run, for all runs. Raises
    DamagedCopy where a copy is not whole.
    """
    own = f"{ledger.profile}/{ledger.run_id}" if ledger.run_id else ""
    for name in runs_there(remote, there):
        if own and name != own:
            continue
        profile, _, run_id = name.partition("/")
        place = replace(ledger, profile=profile, run_id=run_id, outputs=there, folder=".")
        facts = look(remote, place)
        backup = Backup(remote, place.run_folder, outputs / name, say)
        found = backup.pull_all(facts["sealed"], facts["final"], _COPY_SECONDS)
        whole = ", ".join(item.name for item in found if item.state == "whole")
        say(f"{outputs / name}: every digest verified: {whole or 'no checkpoint'}")
        yield name


def discard(ledger: Ledger, provider: Provider, say: Callable[[str], None], clock: Clock) -> None:
    """End a lease without a last copy, with a clear message."""
    with ledger.held():
        if ledger.state not in (State.SAVED, State.GONE):
            say(
                f"DISCARDED: what is on {ledger.label or ledger.name} alone goes with it; saved "
                f"here: {ledger.verified or 'NOTHING'}"
            )
        end(ledger, provider, say, clock)


def reap(
    provider: Provider,
    ledgers: Sequence[Ledger],
    carry_on: Callable[[Ledger], Lease],
    say: Callable[[str], None],
    clock: Clock,
) -> list[str]:
    """End every machine of ours whose deadline is over; returns a line for each failure.

    Ours are those whose name carries a deadline. A lease of this checkout that nobody watches is
    carried on first: its work is saved, within its bounds. Any other machine has a quarter of an
    hour after its deadline, for a watcher elsewhere.
    """
    failed = []
    for machine in provider.machines():
        deadline = deadline_in(machine.name)
        if deadline is None or machine.status in LOST or clock.time() < deadline:
            continue
        ledger = next((item for item in ledgers if item.machine == machine.id), None)
        try:
            _reap(provider, machine, deadline, ledger, carry_on, say, clock)
        except TataraError as error:
            failed.append(f"{machine.name}: {error}")
    return failed


def _reap(
    provider: Provider,
    machine: RentedMachine,
    deadline: float,
    ledger: Ledger | None,
    carry_on: Callable[[Ledger], Lease],
    say: Callable[[str], None],
    clock: Clock,
) -> None:
    limit = deadline + (ledger.salvage_seconds if ledger else _SALVAGE)
    if ledger is not None and not ledger.watcher():
        say(f"{machine.name}: its deadline is over and nobody watches it: carried on")
        try:
            carry_on(ledger).carry_on()
            return
        except LeftRunning as left:
            if clock.time() < limit or ledger.state is not State.KEPT:
                raise
            say(str(left))
    elif clock.time() < limit:
        say(f"{machine.name}: its deadline is over; ended {limit - clock.time():.0f} s from now")
        return
    saved = ledger.verified if ledger else ""
    say(
        f"REAPED: {machine.name}: its deadline and the time to save it are over; what was not "
        f"copied goes with it; saved here: {saved or 'NOTHING that is known here'}"
    )
    if ledger is not None:
        end(ledger, provider, say, clock)
    else:
        end_machine(provider, machine.id, say, clock)
        say(f"ended, and seen gone: {machine.name}")
