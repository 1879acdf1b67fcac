"""Whether two texts hold the same answer, by math-verify in a process of its own.

math-verify limits its work with SIGALRM, which works in a main thread only and cannot interrupt
one long operation inside C. A process of its own gives every caller, in any thread or worker, the
scores of a main thread, and can be killed when it hangs.
"""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workloads.errors import TataraError, UserError
from workloads.grpo.rewards.math_worker import PHASE_DONE
from workloads.signals import held_back

_log = logging.getLogger(__name__)

# math-verify gives every parse and every comparison of expressions 5 s and then calls it no match.
# Killing it after a little more changes no score that it would have given.
PHASE_SECONDS = 8.0
BRIEF_SECONDS = 1  # whole ones: math-verify counts by alarms
_START_SECONDS = 180.0
# A repeated answer is compared once, even where that takes seconds.
_REMEMBERED = 4096
_ATTEMPTS = 2  # a process may die for an outside reason


@dataclass(frozen=True)
class MathVerdict:
    """math-verify's result for a pair: `match`, and its first reading of the left text."""

    match: bool
    first: str | None


_NO_MATCH = MathVerdict(match=False, first=None)


class _Silent(Exception):
    """Raised where the process does not answer in time."""


class MathChecker:
    """One process with math-verify in it: started at first use, shared by threads."""

    def __init__(self, phase_seconds: float = PHASE_SECONDS) -> None:
        self._phase_seconds = phase_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._unread = b""
        self._known: dict[tuple[str, str, bool], MathVerdict] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None before the first question."""
        return self._process.pid if self._process else None

    def compare(self, left: str, right: str, brief: bool = False) -> MathVerdict:
        """math-verify's `verify(parse(left), parse(right))`, and its first reading of `left`.

        `brief` gives every phase a second, where scores need not be those of math-verify's own
        limit. A question that takes too long or brings the process down twice is no match.
        """
        with self._lock:
            question = (left, right, brief)
            if question not in self._known:
                if len(self._known) >= _REMEMBERED:
                    self._known.pop(next(iter(self._known)))
                self._known[question] = self._answer(*question)
            return self._known[question]

    def close(self) -> None:
        """End the process; the next question starts another one."""
        if self._end is not None:
            self._end()
        self._process, self._end, self._unread = None, None, b""

    def _answer(self, left: str, right: str, brief: bool) -> MathVerdict:
        for _ in range(_ATTEMPTS):
            try:
                return self._ask(left, right, brief)
            except _Silent:
                self.close()
                _log.warning("math-verify timed out on %r; counted as no match", left[:200])
                return _NO_MATCH
            except (EOFError, BrokenPipeError):
                self.close()
        _log.warning("math-verify crashed on %r; counted as no match", left[:200])
        return _NO_MATCH

    def _ask(self, left: str, right: str, brief: bool) -> MathVerdict:
        process = self._process or self._start()
        assert process.stdin is not None
        seconds = BRIEF_SECONDS if brief else None
        process.stdin.write(json.dumps([left, right, seconds]).encode("ascii") + b"\n")
        process.stdin.flush()
        limit = 2.0 * BRIEF_SECONDS if brief else self._phase_seconds
        while (answer := self._line(process, limit)) == PHASE_DONE:
            pass
        return MathVerdict(**answer)

    def _start(self) -> subprocess.Popen[bytes]:
        if find_spec("math_verify") is None:
            raise UserError(
                "expected the package math-verify for rewards and scores, found none; "
                'install it with pip install "tatara[grpo]"'
            )
        script = str(Path(__file__).with_name("math_worker.py"))
        with held_back():  # stop signals are for this process to handle
            process = subprocess.Popen(
                [sys.executable, "-P", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        self._process = process
        self._end = weakref.finalize(self, _end, process, os.getpid())
        try:
            self._line(process, _START_SECONDS)
        except (_Silent, EOFError) as error:
            self.close()
            raise TataraError(
                "expected math-verify to start in a process of its own, found that it did not; "
                "the lines above may say why"
            ) from error
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> Any:
        """The process's next line, which has to be complete within `seconds`."""
        assert process.stdout is not None
        poll = select.poll()  # select() refuses descriptors past 1023
        poll.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise _Silent
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


def shared_checker() -> MathChecker:
    """This process's own checker; one that a fork inherited belongs to the parent."""
    return _checker_of(os.getpid())


@lru_cache(maxsize=1)
def _checker_of(pid: int) -> MathChecker:
    return MathChecker()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill and reap `process`, unless this is a fork of the process that started it."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a question was still being sent
                pipe.close()
