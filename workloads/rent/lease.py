"""Carries a lease from its beginning, or any state of its ledger, until its machine is gone.

    NEW → RENTING → RENTED → RUNNING → ENDED → SAVED → ENDING → GONE

Each state is written before the action that leads to the next, so that after a kill the next
process knows everything. Until RUNNING a machine holds nothing: after any failure it is ended. From
RUNNING to SAVED it may hold the only copy: it is ended only once that is here and verified, or when
the time to save it (`salvage_seconds` after the deadline) is over, with a clear message.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from workloads.errors import EXIT_DONE, EXIT_FAILED, EXIT_RETRY, Retry, TataraError, UserError
from workloads.processes import own_command
from workloads.rent import job
from workloads.rent.backup import Backup, DamagedCopy
from workloads.rent.clock import Clock
from workloads.rent.ledger import BEGINS, Ledger, State, label
from workloads.rent.preparing import (
    BrokenMachine,
    Preparation,
    check_gpus,
    examine,
    send,
    set_up,
    start,
)
from workloads.rent.provider import LOST, NoCapacity, Offer, Provider, RentedMachine, dollars
from workloads.rent.remote import HostKeyChanged, OutOfTime, Remote, Unreachable
from workloads.rent.watch import MachineLost, Watch, look
from workloads.run.directory import Run, rows_in
from workloads.run.events import Event
from workloads.signals import Interrupted, Stop

_CAPACITY_POLL, _BOOT_POLL, _END_POLL, _SAVE_POLL = 15.0, 5.0, 5.0, 30.0  # seconds
_BOOT = 1200.0  # seconds until ssh answers; machines with 8 GPUs take 10 to 15 minutes
_END = 600.0  # seconds until a machine is seen gone
_END_AGAIN = 30.0  # seconds after which it is asked again
_PUSHES = (Event.PUSHED, Event.PUSH_FAILED)
# Exit codes of a training that are passed on; others become 1.
_CODES = (0, 1, 2, 3, 75, 130, 143)


class LeftRunning(TataraError):
    """A machine still runs, on purpose or after failures; the text names the command to end it."""


@dataclass
class Lease:
    """One ledger with everything needed to continue it.

    remote: the machine's, its address filled in by the lease. preparation: None where the training
    was started before.
    """

    ledger: Ledger
    provider: Provider
    remote: Remote
    preparation: Preparation | None
    say: Callable[[str], None]
    stop: Stop
    clock: Clock

    def carry_on(self) -> int:
        """Carry the lease to its end; returns the training's exit code where it is saved.

        Raises LeftRunning where a machine is left running, Retry where a new lease is worth it,
        UserError for what stops the training itself.
        """
        ledger = self.ledger
        with ledger.held():
            if ledger.state in BEGINS:
                if self.stop():  # resumed only to be ended
                    self._give_back("ended before the training began")
                    return EXIT_DONE
                self._make_ready()
            try:
                if ledger.state in (State.RUNNING, State.KEPT):
                    self._watched()
                if ledger.state is State.ENDED:
                    self._save()
            except MachineLost as lost:
                if not self.provider.bills:
                    raise self._kept(str(lost)) from None
                self._lost(lost)
            except LeftRunning:
                raise
            except (TataraError, OSError) as error:
                raise self._kept(str(error)) from None
            if ledger.state in (State.SAVED, State.ENDING):
                end(ledger, self.provider, self.say, self.clock)
            return self._code()

    def _code(self) -> int:
        if self.ledger.code < 0 or self.ledger.note in ("lost", "hung"):
            return EXIT_RETRY
        return self.ledger.code if self.ledger.code in _CODES else EXIT_FAILED

    # --- until the training runs ---------------------------------------------------------------

    def _make_ready(self) -> None:
        """Rent machines until one of them trains; after any failure none of them stays."""
        tries = self.ledger.request.tries
        for left in reversed(range(tries)):
            try:
                self._rent()
                self._try_machine()
                return
            except (BrokenMachine, Unreachable, OutOfTime, HostKeyChanged) as error:
                self._give_back(str(error))
                self._unless_stopped()
                if not left:
                    raise Retry(f"no machine of {tries} could train; the last: {error}") from None
            except BaseException as error:
                self._give_back(str(error) or "stopped")
                raise

    def _rent(self) -> None:
        ledger, request = self.ledger, self.ledger.request
        if ledger.state is State.RENTED:
            return
        if ledger.state is State.GONE:
            ledger.state = State.NEW
        self.provider.ready()
        if ledger.state is State.RENTING and self._adopt():
            return
        end = self.clock.time() + request.wait_seconds
        while True:
            offers = filter(request.suits, self.provider.offers())
            for offer in sorted(offers, key=lambda offer: (offer.price, offer.type, offer.region)):
                self._unless_stopped()
                if self._launch(offer):
                    return
            if self.clock.time() >= end:
                raise Retry(f"no capacity for {request}; try again, or allow more")
            self.say(f"no capacity for {request}; asked again")
            self.clock.sleep(_CAPACITY_POLL, self.stop)
            self._unless_stopped()

    def _launch(self, offer: Offer) -> bool:
        """Launch an offer and return whether that worked; writes the machine's name before."""
        ledger, now = self.ledger, self.clock.time()
        hours = ledger.request.hours
        ledger.deadline = now + hours * 3600 if hours else 0.0
        ledger.label = label(ledger.name, ledger.deadline) if hours else ledger.name
        ledger.type, ledger.region, ledger.price = offer.type, offer.region, offer.price
        ledger.gpus = offer.gpus or ledger.gpus
        ledger.state, ledger.rented, ledger.ended = State.RENTING, now, 0.0
        ledger.save()
        try:
            ledger.machine = self.provider.launch(offer, ledger.label)
        except NoCapacity:
            self.say(f"{offer}: gone before it was ours")
            ledger.state, ledger.rented = State.NEW, 0.0
            ledger.save()
            return False
        except Retry as error:
            # It may have been launched nevertheless: its name would show.
            self.say(f"{error}; is it there?")
            self.clock.sleep(_BOOT_POLL)
            return self._adopt()
        ledger.state = State.RENTED
        ledger.save()
        if self.provider.bills:
            self.say(f"rented: {offer}, as {ledger.label} ({ledger.machine})")
        return True

    def _adopt(self) -> bool:
        """Adopt the machine of the ledger's name, if a launch succeeded without an answer."""
        ledger = self.ledger
        found = [machine for machine in self.provider.machines() if machine.name == ledger.label]
        found = [item for item in found if item.status not in LOST]
        if not found:
            ledger.state, ledger.rented = State.NEW, 0.0
            ledger.save()
            return False
        ledger.machine, ledger.state = found[0].id, State.RENTED
        ledger.save()
        self.say(f"found: {ledger.label} ({ledger.machine})")
        return True

    def _try_machine(self) -> None:
        ledger, preparation = self.ledger, self.preparation
        assert preparation is not None
        self._reach()
        remote = replace(self.remote, stop=self.stop)
        self.say(check_gpus(remote, ledger))
        self._unless_stopped()
        self.say(send(remote, ledger, preparation))
        self.say(set_up(remote, ledger, preparation))
        self._unless_stopped()
        self.say(examine(remote, ledger, preparation))
        self._unless_stopped()
        ledger.state = State.RUNNING
        ledger.save()
        try:
            start(replace(self.remote, stop=lambda: 0), ledger, preparation)
        except (Unreachable, OutOfTime) as error:
            self.say(f"{error}; whether it was received will show")
        except TataraError:
            ledger.state = State.RENTED
            ledger.save()
            raise
        self.say(f"training: {ledger.profile}/{ledger.run_id}")

    def _reach(self) -> None:
        """Wait for an address, then for ssh, which may answer before the provider says active."""
        ledger, end, reason = self.ledger, self.clock.time() + _BOOT, "it got no address"
        while self.clock.time() < end:
            machine = self.provider.machine(ledger.machine)
            if machine is None or machine.status in LOST:
                raise BrokenMachine(f"it is {machine.status if machine else 'gone'}")
            if machine.address:
                self._address(machine)
                try:
                    answer = replace(self.remote, stop=self.stop).run(job.prepare(ledger))
                except (Unreachable, OutOfTime) as error:
                    reason = str(error)
                else:
                    if answer.code:
                        raise UserError(f"{self.remote.target}: {answer.reason}")
                    self.say(f"reached: {self.remote.target}")
                    return
            self._unless_stopped()
            self.clock.sleep(_BOOT_POLL, self.stop)
            self._unless_stopped()
        raise BrokenMachine(f"not ready within {_BOOT / 60:.0f} minutes: {reason}")

    def _address(self, machine: RentedMachine) -> None:
        if self.ledger.address != machine.address:
            self.ledger.address = machine.address
            self.ledger.save()
        if self.remote.address != machine.address:
            # An address may be reused by a machine with another host key.
            if self.remote.known_hosts:
                self.remote.known_hosts.unlink(missing_ok=True)
            self.remote = replace(self.remote, address=machine.address)

    def _give_back(self, reason: str) -> None:
        """End a machine that holds nothing; the lease starts over."""
        ledger = self.ledger
        if ledger.state is State.NEW or (ledger.state is State.RENTING and not self._adopt()):
            ledger.state = State.GONE
            ledger.save()
            return
        if not self.provider.bills:
            # Secrets in the memory of a machine that stays.
            self._forget()
        else:
            self.say(f"given back: {ledger.machine}: {reason}")
            ledger.returned.append(f"{ledger.machine}: {reason}")
        end(ledger, self.provider, self.say, self.clock)
        ledger.spent_before, ledger.rented = ledger.cost(self.clock.time()), 0.0
        ledger.machine = ""
        ledger.save()

    def _forget(self) -> None:
        try:
            self._reached().run(job.forget(self.ledger))
        except TataraError as error:
            self.say(f"{error}; secrets stay in its memory until it restarts")

    def _unless_stopped(self) -> None:
        if number := self.stop():
            raise Interrupted(number)

    # --- while it trains, and after -------------------------------------------------------------

    def _watched(self) -> None:
        ledger = self.ledger
        ledger.state = State.RUNNING
        ledger.save()
        watch = Watch(
            ledger,
            self.provider,
            self._reached(),
            self._backup(),
            self.clock,
            self.say,
            stop=self.stop,
            now=lambda: int(self.stop.now),
        )
        watch.until_over()
        if self.stop.now:
            raise self._kept("left at once, as asked: the training goes on")
        if ledger.code < 0:
            self.say("the training's processes are gone without a word: killed, or a restart")
            self._forget()  # remove what they would have removed
        else:
            self.say(f"the training ended with {ledger.code}")

    def _reached(self) -> Remote:
        return replace(self.remote, address=self.ledger.address, stop=lambda: int(self.stop.now))

    def _backup(self) -> Backup:
        ledger = self.ledger
        return Backup(self._reached(), ledger.run_folder, Path(ledger.copy), self.say)

    def _save(self) -> None:
        """Copy everything home until it is whole here, or until the time for it is over."""
        ledger, backup = self.ledger, self._backup()
        now = self.clock.time()
        limit = max(now, ledger.deadline) + ledger.salvage_seconds
        while True:
            try:
                self._save_once(backup, max(limit - self.clock.time(), 1.0))
                return
            except (DamagedCopy, HostKeyChanged) as error:
                raise self._kept(str(error)) from None
            except TataraError as error:
                ledger.verified = backup.newest or ledger.verified
                if self.stop.now:
                    raise self._kept("left at once, as asked") from None
                if self.clock.time() >= limit:
                    raise MachineLost(f"the time to save it is over: {error}") from None
                self.say(f"{error}; tried again")
            self.clock.sleep(_SAVE_POLL, lambda: int(self.stop.now))

    def _save_once(self, backup: Backup, seconds: float) -> None:
        ledger = self.ledger
        facts = look(backup.remote, ledger)
        logs = ledger.path / "job"
        backup.remote.pull(ledger.job_folder, logs, ["--include=log", "--exclude=*"], seconds)
        if facts["run"]:
            found = backup.pull_all(facts["sealed"], facts["final"], seconds)
            ledger.verified = backup.newest
            whole = ", ".join(item.name for item in found if item.state == "whole")
            self.say(f"saved in {ledger.copy}, every digest verified: {whole or 'no checkpoint'}")
            if pushed := _pushed(Run(Path(ledger.copy))):
                self.say(pushed)
        else:
            log = logs / "log"
            lines = log.read_text(errors="replace").splitlines()[-12:] if log.is_file() else []
            self.say("there is no run to save; its last lines:\n  " + "\n  ".join(lines))
        ledger.state = State.SAVED
        ledger.save()

    def _lost(self, lost: MachineLost) -> None:
        """End a machine that cannot be reached any more, and report what was saved of it."""
        ledger = self.ledger
        ledger.note = "lost"
        kept = f"{ledger.verified} in {ledger.copy} is whole" if ledger.verified else "NOTHING"
        self.say(f"LOST: {lost}. What was not copied goes with it; saved before: {kept}")
        ledger.state = State.ENDING
        ledger.save()

    def _kept(self, reason: str) -> LeftRunning:
        ledger = self.ledger
        ledger.state = State.KEPT
        with contextlib.suppress(OSError):  # report even if the disk is full
            ledger.save()
        left = "Left as it is"
        if ledger.bills:
            left = f"STILL RUNNING, at ${ledger.price:.2f} an hour"
        return LeftRunning(
            f"{reason}. {left}: {ledger.label} at {ledger.address}, which may hold "
            f"the only copy; saved here: {ledger.verified or 'nothing'}. Go on: tatara rent watch "
            f"{ledger.name}; end it: tatara rent end {ledger.name} (--discard: without a copy)"
        )


def _pushed(run: Run) -> str:
    """Result of the push to the hub; empty without one."""
    found = [row for row in rows_in(run.events) if row.get("event") in _PUSHES]
    if not found:
        return ""
    if found[-1]["event"] == Event.PUSHED:
        return f"pushed to the hub: {found[-1].get('repository')}"
    return (
        f"NOT on the hub: {found[-1].get('reason')}; push it from here: "
        f"{own_command('export', run.id, '--push-to-hub')}"
    )


def end(ledger: Ledger, provider: Provider, say: Callable[[str], None], clock: Clock) -> None:
    """End the ledger's machine and wait until it is seen gone.

    Raises LeftRunning, with the command to type, where it still exists after ten minutes.
    """
    if not provider.bills:
        ledger.state, ledger.ended = State.GONE, clock.time()
        ledger.save()
        return
    ledger.state = State.ENDING
    ledger.save()
    end_machine(provider, ledger.machine, say, clock)
    ledger.ended, ledger.state = clock.time(), State.GONE
    ledger.save()
    say(
        f"ended, and seen gone: {ledger.label}; it cost {dollars(ledger.cost(ledger.ended))} in all"
    )


def end_machine(provider: Provider, machine: str, say: Callable[[str], None], clock: Clock) -> None:
    """Request a machine's end until it is seen gone; raises LeftRunning where it is not."""
    limit, asked, reason = clock.time() + _END, 0.0, ""
    while clock.time() < limit:
        try:
            if not asked or clock.time() - asked >= _END_AGAIN:
                asked = clock.time()
                provider.terminate(machine)
            if provider.machine(machine) is None:
                return
        except UserError as error:
            reason = f": {error}"
            break
        except TataraError as error:
            reason = f": {error}"
            say(f"{error}; asked again")
            asked = 0.0
        clock.sleep(_END_POLL)
    by_hand = provider.end_by_hand.replace("MACHINE", machine)
    raise LeftRunning(
        f"{machine} was asked to end and is still there{reason}. IT COSTS UNTIL IT IS GONE; end it "
        f"in the provider's console, or with:\n  {by_hand}"
    )
