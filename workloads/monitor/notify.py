"""Notices by a command or a webhook when a run ends, fails or stalls.

The address of a webhook usually is a secret: whoever has it can write there. It is never printed,
and may be kept in a file.
"""

import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from workloads.errors import UserError
from workloads.monitor.numbers import clean
from workloads.monitor.reading import find
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run

EVERY = 5.0  # seconds between two readings
_STALLED = 30.0  # seconds that a standstill must last; a busy disk may delay heartbeats
_STANDSTILL = ("suspended", "stalled", "gone", "stuck")
_MOST = 100  # notices that wait to be sent
_SECONDS = 20.0  # seconds for one attempt
_LONGEST = 1500  # characters of a reason
_PAUSES = (2.0, 8.0)  # seconds before the second and the third attempt of a webhook


@dataclass(frozen=True)
class Notice:
    """event: finished, stopped, failed, lost or stalled; text: the whole notice as a sentence."""

    run: str
    event: str
    step: int
    reason: str
    text: str


class Changes:
    """Compares new readings with earlier ones."""

    def __init__(self) -> None:
        self._begun = time.time()
        self._states: dict[Path, str] = {}
        self._stalled: dict[Path, float] = {}

    def find(self, snapshots: Sequence[Snapshot]) -> Iterator[Notice]:
        """One notice for each run that has changed; none for runs that had ended before."""
        for snapshot in snapshots:
            if snapshot.reading is not None:
                continue  # its outcome is not known yet
            path, state = snapshot.run.path, self._state(snapshot)
            is_new = (snapshot.started or 0) > self._begun
            before = self._states.get(path, "active" if is_new else state)
            self._states[path] = state
            if state not in (before, "active"):
                yield _notice(snapshot, state)

    def _state(self, snapshot: Snapshot) -> str:
        path = snapshot.run.path
        stands = snapshot.active and any(
            rank.state in _STANDSTILL and rank.sure for rank in snapshot.ranks
        )
        if not stands:
            self._stalled.pop(path, None)
            return "active" if snapshot.active else snapshot.phase
        since = self._stalled.setdefault(path, time.monotonic())
        return "stalled" if time.monotonic() - since >= _STALLED else "active"


def _notice(snapshot: Snapshot, event: str) -> Notice:
    reason = snapshot.reason
    if event in ("stalled", "lost"):
        reason = next((alert.text for alert in alerts(snapshot) if alert.bad), "")
    # No program takes a NUL or a lone surrogate as an argument, and chats refuse long messages.
    name, reason = clean(snapshot.name), _shortened(clean(reason))
    steps = f" of {snapshot.steps:,}" if snapshot.steps else ""
    text = f"{name} {event} at step {snapshot.step:,}{steps}"
    loss = "" if snapshot.loss is None else f", loss {snapshot.loss:.4g}"
    because = f": {reason}" if reason else ""
    return Notice(name, event, snapshot.step, reason, f"{text}{loss}{because}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


class NoticeTarget(Protocol):
    """Destination of notices; `name` may be printed."""

    @property
    def name(self) -> str: ...

    def send(self, notice: Notice) -> str | None:
        """Send a notice and return the error, None for success."""


@dataclass(frozen=True)
class Command:
    """A program that gets the text as its last argument, and its parts in the environment."""

    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"the command {self.arguments[0]}"

    def send(self, notice: Notice) -> str | None:
        own = {
            "TATARA_NOTICE_RUN": notice.run,
            "TATARA_NOTICE_EVENT": notice.event,
            "TATARA_NOTICE_REASON": notice.reason,
            "TATARA_NOTICE_TEXT": notice.text,
        }
        try:
            process = subprocess.Popen(
                [*self.arguments, notice.text],
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that its own children can be ended with it
            )
        except (OSError, ValueError) as error:
            return f"cannot be started: {error}"
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"did not end within {_SECONDS:.0f} s and was ended"
        if code < 0:
            return f"was ended by signal {-code}"
        return f"ended with exit code {code}" if code else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect, which would send the notice to an address that nobody named."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class Webhook:
    """An address that gets each notice as JSON; chats show `text` or `content`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = f"the webhook at {urlsplit(url).hostname}"

    def send(self, notice: Notice) -> str | None:
        trouble = self._try(notice)
        for pause in _PAUSES:
            if trouble is None:
                break
            time.sleep(pause)
            trouble = self._try(notice)
        return trouble

    def _try(self, notice: Notice) -> str | None:
        """One attempt, in a thread: a server that sends a byte a minute blocks nothing."""
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.append(self._post(notice)), daemon=True)
        thread.start()
        thread.join(_SECONDS)
        return found[0] if found else f"no answer within {_SECONDS:.0f} s"

    def _post(self, notice: Notice) -> str | None:
        content = json.dumps({**asdict(notice), "content": notice.text}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "tatara"}
        request = urllib.request.Request(self._url, content, headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            opener.open(request, timeout=_SECONDS / 2).close()
        except HTTPError as error:
            error.close()
            return f"answered with status {error.code}"
        except URLError as error:
            # Not the error's own text, which may contain the address.
            said = error.reason.strerror if isinstance(error.reason, OSError) else None
            return f"cannot be reached: {said or type(error.reason).__name__}"
        except TimeoutError:
            return f"gave no answer within {_SECONDS / 2:.0f} s"
        except (OSError, ValueError, HTTPException) as error:
            return f"cannot be reached: {type(error).__name__}"
        return None


def target_of(wanted: str) -> NoticeTarget:
    """A command, the address of a webhook, or `@FILE` that holds either; UserError otherwise."""
    if wanted.startswith("@"):
        path = Path(wanted[1:]).expanduser()
        try:
            wanted = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--notify {path}: cannot be read ({type(error).__name__})") from None
    if "://" in wanted.partition(" ")[0]:
        return _webhook(wanted)
    try:
        arguments = shlex.split(wanted)
    except ValueError as error:
        raise UserError(f"--notify: the command is not whole: {error}; quote it again") from None
    if not arguments or shutil.which(arguments[0]) is None:
        found = arguments[0] if arguments else "nothing"
        raise UserError(
            f"--notify: expected a command or the address of a webhook, found {found}, which is no "
            "program here; name one, or https://…, or @FILE that holds the address"
        )
    return Command(tuple(arguments))


def _webhook(url: str) -> Webhook:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or any(character.isspace() for character in url):
        raise UserError(
            "--notify: expected the address of a webhook as https://HOST/PATH, found one without "
            "host or of another kind; check it"
        )
    return Webhook(url)


class Notifier:
    """Reads runs in the background and sends notices one after the other."""

    def __init__(
        self, root: Path, run: Run | None, target: NoticeTarget, report: Callable[[str], None]
    ) -> None:
        """run: the only one to watch; None for all.

        report: gets a line for each notice, sent or not.
        """
        self._root, self._run, self._target, self._report = root, run, target, report
        self._list, self._changes = find.RunList(), Changes()
        self._is_over = False
        self._waiting: queue.Queue[Notice] = queue.Queue(_MOST)
        self._ended = threading.Event()  # the run that is watched, if alone, and its waiting notice

    def start(self) -> None:
        for work in (self._read, self._send):
            threading.Thread(target=work, daemon=True).start()

    def read(self) -> list[Notice]:
        """Read all runs and queue notices of changes."""
        runs = [self._run] if self._run else find.runs(self._root)[: find.MOST]
        snapshots = self._list.read(runs)
        self._is_over = self._run is not None and not any(
            snapshot.active or snapshot.reading is not None for snapshot in snapshots
        )
        return list(self._changes.find(snapshots))

    def send(self, notice: Notice) -> None:
        """Send one notice, and report the result."""
        trouble = self._target.send(notice)
        self._report(
            f"{notice.text}; {self._target.name} was not told: it {trouble}"
            if trouble
            else f"{notice.text}; {self._target.name} was told"
        )

    def _read(self) -> None:
        while not self._ended.is_set():
            for notice in self.read():
                if self._waiting.full():
                    self._waiting.get_nowait()  # the newest count
                    self._waiting.task_done()
                self._waiting.put(notice)
            if self._is_over:
                self._ended.set()
            time.sleep(EVERY)

    def _send(self) -> None:
        while True:
            self.send(self._waiting.get())
            self._waiting.task_done()

    def wait(self) -> None:
        """Wait until the watched run has ended and its notice was sent; for all runs, forever."""
        self._ended.wait()
        self._waiting.join()
