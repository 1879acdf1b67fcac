"""Watches a training on a machine: copies what is saved, ends what hangs.

The machine is not trusted: progress means changes in the run's files, and a machine that ssh does
not reach for some time is given up, with a report of what was saved.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import TataraError
from workloads.rent import job, probe
from workloads.rent.backup import Backup
from workloads.rent.clock import Clock
from workloads.rent.ledger import Ledger, State
from workloads.rent.provider import LOST, Provider, dollars
from workloads.rent.remote import HostKeyChanged, OutOfTime, Remote, Unreachable

_POLL, _PULL, _REPORT = 20.0, 300.0, 60.0  # seconds between two checks, copies and lines
_GONE = 900.0  # seconds without ssh after which a machine is given up
_TERM = 120.0  # seconds for a hanging training after SIGTERM
_PULL_SECONDS = 3600.0
_LAST_STEPS = 30.0  # seconds before the deadline: the last copy may begin


class MachineLost(TataraError):
    """The machine cannot be reached any more."""


@dataclass
class Watch:
    """One training on the machine. stop: a request of the user."""

    ledger: Ledger
    provider: Provider
    remote: Remote
    backup: Backup
    clock: Clock
    say: Callable[[str], None]
    stop: Callable[[], int]
    now: Callable[[], int] = lambda: 0  # request to leave immediately
    poll: float = _POLL
    facts: dict[str, Any] = field(default_factory=dict)
    _progress: str = ""
    _progress_at: float = 0.0
    _seen_at: float = 0.0
    _reported_at: float = 0.0
    _pulled_at: float = 0.0
    _asked_at: float = 0.0  # to stop
    _killed_at: float = 0.0

    def until_over(self) -> None:
        """Wait until the training is over, with its code in the ledger; else raises MachineLost."""
        self._progress_at = self._seen_at = self._pulled_at = self.clock.time()
        while not self.now():
            try:
                self.facts = look(self.remote, self.ledger)
            except (Unreachable, OutOfTime) as error:
                self._out_of_reach(error)
            else:
                self._seen_at = self.clock.time()
                if self._is_over():
                    return
                self._note_progress()
                self._ask_to_stop()
                self._pull()
                self._report()
            self.clock.sleep(self.poll, self._is_new_wish)

    def _is_new_wish(self) -> int:
        """Whether a first request to stop is new, which ends a wait immediately."""
        return self.now() or (0 if self._asked_at else self.stop())

    def _out_of_reach(self, error: TataraError) -> None:
        now = self.clock.time()
        if now - self._reported_at >= _REPORT:
            self.say(f"{error}; tried again")
            self._reported_at = now
        try:
            machine = self.provider.machine(self.ledger.machine)
        except TataraError:
            pass  # a failure of the provider says nothing about the machine
        else:
            if machine is None or machine.status in LOST:
                raise MachineLost(f"the machine is {machine.status if machine else 'gone'}")
        ledger = self.ledger
        if ledger.deadline and now > ledger.deadline + ledger.salvage_seconds:
            raise MachineLost("ssh does not get through, and the lease is over")
        if ledger.bills and now - self._seen_at > _GONE:
            raise MachineLost(f"ssh did not get through for {_GONE / 60:.0f} minutes")

    def _is_over(self) -> bool:
        code = self.facts["code"]
        stuck = self._killed_at and self.clock.time() - self._killed_at > _TERM
        if code is None and self.facts["alive"] and not stuck:
            return False
        # Without a code its processes ended before they could write one: a kill, a reboot.
        self.ledger.code = -1 if code is None else code
        self.ledger.state = State.ENDED
        self.ledger.save()
        return True

    def _note_progress(self) -> None:
        if self.facts["progress"] != self._progress:
            self._progress, self._progress_at = self.facts["progress"], self.clock.time()

    def _ask_to_stop(self) -> None:
        now, ledger = self.clock.time(), self.ledger
        if self._asked_at:
            if not self._killed_at and now - self._asked_at > max(ledger.save_seconds, _TERM):
                self._signal("KILL", "it did not end; killed")
                self._killed_at = now
            return
        reason = ""
        if self.stop():
            reason = "asked to stop"
        elif ledger.deadline and now >= ledger.deadline - ledger.save_seconds - _LAST_STEPS:
            reason = "the lease ends"
        elif ledger.hang_seconds and now - self._progress_at > ledger.hang_seconds:
            reason = f"no progress for {ledger.hang_seconds / 60:.0f} minutes"
            ledger.note = "hung"
        if reason:
            self._asked_at = now
            self._signal("TERM", f"{reason}: the training saves and ends")

    def _signal(self, name: str, text: str) -> None:
        self.say(text)
        try:
            answer = self.remote.run(job.stop(self.ledger, name))
        except (Unreachable, OutOfTime) as error:
            self.say(str(error))
            self._asked_at = 0.0 if name == "TERM" else self._asked_at
            return
        if answer.code:
            self.say(f"its process is not there: {answer.reason}")

    def _pull(self) -> None:
        """Copy when a checkpoint is new, and small files now and then."""
        new = set(self.facts["sealed"]) - self.backup.whole
        now = self.clock.time()
        if not self.facts["run"] or not (new or now - self._pulled_at >= _PULL):
            return
        self._pulled_at, before = now, self.backup.newest
        seconds = _PULL_SECONDS
        if self.ledger.deadline:
            # A request to stop must not wait for a copy.
            left = self.ledger.deadline - self.ledger.save_seconds - now
            seconds = max(_TERM, min(seconds, left))
        try:
            self.backup.pull(self.facts["sealed"], False, seconds)
        except HostKeyChanged:
            raise
        except TataraError as error:
            self.say(f"{error}; copied again later")
        if self.backup.newest != before:
            self.ledger.verified = self.backup.newest
            self.ledger.save()
            self.say(f"copied and verified: {self.backup.newest}")

    def _report(self) -> None:
        now = self.clock.time()
        if now - self._reported_at >= _REPORT:
            self._reported_at = now
            self.say(progress_text(self.ledger, self.facts, now))


def look(remote: Remote, ledger: Ledger) -> dict[str, Any]:
    """State of the training by its files, from probe.py. Raises TataraError without one."""
    source = Path(probe.__file__).read_text(encoding="utf-8")
    answer = remote.python(source, ledger.run_folder, ledger.job_folder)
    if answer.code:
        raise TataraError(f"{remote.target}: its state cannot be read: {answer.reason}")
    # The shell may print a greeting before.
    found: dict[str, Any] = json.loads(answer.out.strip().splitlines()[-1])
    return found


def progress_text(ledger: Ledger, facts: dict[str, Any], now: float) -> str:
    """Phase, step, saved folders and cost as text."""
    of = f" of {facts['steps']}" if facts.get("steps") else ""
    step = f", step {facts['step']}{of}" if facts.get("step") else ""
    parts = [f"{facts.get('phase') or 'starting'}{step}"]
    parts.append(f"saved here: {ledger.verified or 'nothing yet'}")
    if ledger.bills:
        parts.append(f"{dollars(ledger.cost(now))} so far")
    return "; ".join(parts)
