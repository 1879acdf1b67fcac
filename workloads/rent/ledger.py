"""A lease as a file, written before and after every step, so that another process can continue.

`outputs/.leases/<name>/lease.json`, with the machine's host key and a log beside it. It holds no
secret. A process that works on a lease holds its lock, which ends with the process in any case.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.rent.provider import Request
from workloads.run.integrity import write_atomically

FOLDER = ".leases"
_LONGEST = 64  # longest name at a provider, in characters
_DEADLINE = re.compile(r"tatara-.*-t(\d{9,11})")


class State(StrEnum):
    """State of a lease; each is written before the step that leads to the next."""

    NEW = "new"  # nothing is rented
    RENTING = "renting"  # requested; the answer may have been lost
    RENTED = "rented"  # a machine is billed, without anything worth keeping
    RUNNING = "running"  # the training was started: the machine may hold the only copy
    ENDED = "ended"  # the training is over, the last copy is not verified
    SAVED = "saved"  # everything is copied and verified
    ENDING = "ending"  # end requested, not seen gone
    GONE = "gone"  # seen gone, or never rented; an own machine is left alone
    KEPT = "kept"  # left running on purpose: it may hold the only copy


# States in which nothing worth keeping is on a machine.
BEGINS = (State.NEW, State.RENTING, State.RENTED)


@dataclass
class Ledger:
    """Everything needed to continue a lease.

    deadline, times: seconds since 1970, 0 for none. code: the training's exit code, -1 where it
    has none. verified: the newest checkpoint, or final, that is whole in the copy.
    """

    name: str
    provider: str
    profile: str  # its name
    run_id: str
    root: str  # folder of the ledger
    copy: str  # the run's folder here
    checkout: str
    state: State = State.NEW
    request: Request = field(default_factory=Request)
    label: str = ""  # the machine's name, which carries the deadline
    machine: str = ""
    address: str = ""
    type: str = ""
    region: str = ""
    price: float = 0.0
    gpus: int = 0
    user: str = ""
    identity: str = ""
    key: str = ""  # name of an ssh key at the provider
    file_system: str = ""
    options: list[str] = field(default_factory=list)
    folder: str = "tatara"
    outputs: str = "outputs"  # over there, below folder or absolute
    python: str = ""
    retries: int = 3
    resume: bool = False
    begun: float = 0.0
    rented: float = 0.0
    deadline: float = 0.0
    ended: float = 0.0
    hang_seconds: float = 0.0
    save_seconds: float = 300.0
    salvage_seconds: float = 900.0
    code: int = -1
    verified: str = ""
    spent_before: float = 0.0  # dollars for machines that were given back
    returned: list[str] = field(default_factory=list)  # those machines, with the reason
    note: str = ""

    @property
    def path(self) -> Path:
        return Path(self.root)

    @property
    def run_folder(self) -> str:
        """The run's folder on the machine."""
        return f"{self.outputs_there}/{self.profile}/{self.run_id}"

    @property
    def outputs_there(self) -> str:
        return self.outputs if self.outputs.startswith("/") else f"{self.folder}/{self.outputs}"

    @property
    def job_folder(self) -> str:
        """Folder of log, process id and exit code of the training on the machine."""
        return f"{self.folder}/.cache/rent/{self.run_id}"

    @property
    def bills(self) -> bool:
        return self.price > 0

    @property
    def is_open(self) -> bool:
        """Whether a machine may still run or be billed."""
        return self.state is not State.GONE

    def cost(self, now: float) -> float:
        """Dollars until now, by the begun minute."""
        if not self.rented:
            return self.spent_before
        minutes = -(-((self.ended or now) - self.rented) // 60)
        return self.spent_before + self.price * max(minutes, 0) / 60

    def save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.path / "lease.json", json.dumps(asdict(self), indent=1))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock this lease for this process; raises UserError where another one holds it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self.name}: expected nobody to work on this lease, found process "
                    f"{file.read().strip() or 'unknown'}; stop that first (Ctrl-C saves)"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def watcher(self) -> int:
        """Id of the process that works on this lease, 0 for none."""
        try:
            with (self.path / "lock").open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read().strip()
                    return int(text) if text.isdecimal() else 0
        except OSError:
            pass
        return 0


def lease_name(profile: str, run_id: str) -> str:
    """`tatara-<profile>-<run>`, with the profile cut so that a deadline fits behind it."""
    slug = re.sub(r"[^a-zA-Z0-9]+", "-", profile).strip("-").lower() or "run"
    run = re.sub(r"[^a-zA-Z0-9]+", "-", run_id).strip("-")[:24]
    room = _LONGEST - len(f"tatara--{run}-t0123456789")
    return f"tatara-{slug[:room].strip('-')}-{run}"


def label(name: str, deadline: float) -> str:
    """The name of a machine: `tatara-<profile>-<run>-t<deadline>`."""
    return f"{name}-t{round(deadline)}"


def deadline_in(name: str) -> float | None:
    """The deadline in a machine's name; None for a name that is not ours."""
    found = _DEADLINE.fullmatch(name)
    return float(found[1]) if found else None


def load(folder: Path) -> Ledger:
    """Load a ledger from its folder; raises UserError where it cannot be read."""
    path = folder / "lease.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name for item in fields(Ledger)}
        ledger = Ledger(**{name: value for name, value in values.items() if name in known})
        ledger.state = State(ledger.state)
        asked: dict[str, Any] = values["request"]
        ledger.request = Request(
            **{**asked, "types": tuple(asked["types"]), "regions": tuple(asked["regions"])}
        )
        ledger.root = str(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: expected a lease, found {error}; move it away") from None
    return ledger


def ledgers(outputs: Path, report: Callable[[str], None] | None = None) -> list[Ledger]:
    """Every lease that was begun here, oldest first.

    Raises UserError for an unreadable one; with `report`, that gets the message instead.
    """
    found = []
    for path in (outputs / FOLDER).glob("*/lease.json"):
        try:
            found.append(load(path.parent))
        except UserError as error:
            if report is None:
                raise
            report(str(error))
    return sorted(found, key=lambda ledger: ledger.begun)
