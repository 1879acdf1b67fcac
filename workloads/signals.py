"""Stop signals, SIGTERM and SIGINT: who acts on them, and what a process that they end says.

Slurm and systemd send them to every process of a job at once, some more than once. A process acts
from its first moment: one that is started `held_back` has them blocked until it has a handler.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """A stop signal that came where there was nothing to save; `exit_code` as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.number, self.exit_code = number, 128 + number


def listen(handler: Handler) -> None:
    """Call `handler` for every stop signal, for those that were held back first."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals in this thread and in what it starts; here they come at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Within: stop signals call `handler`. Outside of the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    try:
        listen(handler)
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of whatever has nothing to save."""
    raise Interrupted(number)


def interruptible(work: Callable[[], int]) -> int:
    """The exit code of `work`, or 130 or 143 where a stop signal cuts it short."""
    try:
        with handled_by(interrupt):
            return work()
    except Interrupted as stop:
        print("tatara: stopped", file=sys.stderr, flush=True)
        return stop.exit_code
