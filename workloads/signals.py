"""Stop signals, SIGTERM and SIGINT: handlers, blocking, and exit codes.

Slurm and systemd send them to every process of a job at once, some more than once. A process acts
from its first moment: one that is started `held_back` has them blocked until it has a handler.
SIGHUP, of a terminal that closes, is the supervisor's alone.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HELD_BACK = (*STOP_SIGNALS, signal.SIGHUP)
_SAME_WISH = 2.0  # seconds in which a repeated signal says nothing new
Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """A stop signal where there was nothing to save; `exit_code` as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.number, self.exit_code = number, 128 + number


def listen(handler: Handler) -> None:
    """Call `handler` for every stop signal, first for blocked ones."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def listen_to_terminal(handler: Handler) -> None:
    """Take a terminal that closes, as when a connection breaks, for a SIGTERM; `nohup` goes on."""
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: handler(signal.SIGTERM, frame))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def ignore() -> None:
    """Let no stop signal change how this process ends any more."""
    for number in _HELD_BACK:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals in this thread and in what it starts; here they come at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Context in which stop signals call `handler`; no effect outside of the main thread.

    Afterwards the former handlers apply, unless stop signals are ignored by then.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    try:
        listen(handler)
        yield
    finally:
        for number, old in before:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, old)


class Stop:
    """The stop request, by the signals of this process.

    Slurm, systemd and `docker stop` repeat signals: those within two seconds are the same request.
    A later one, or a second Ctrl-C at any time, means now.
    """

    # No dataclass: importing that module takes half as long as all of `tatara --help`.
    def __init__(self, at_once: Handler | None = None) -> None:
        """at_once: called when a signal means now; sets `now`, too."""
        self.at_once = at_once
        self.number, self.now = 0, False
        self._since, self._interrupts = 0.0, 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif self._interrupts > 1 or time.monotonic() - self._since >= _SAME_WISH:
            self.now = True
            if self.at_once is not None:
                self.at_once(number, frame)

    def __call__(self) -> int:
        """The first signal received, 0 for none."""
        return self.number


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler for code that has nothing to save."""
    raise Interrupted(number)


def interruptible(work: Callable[[], int]) -> int:
    """Run `work` and return its exit code, or 130 or 143 if a stop signal interrupts it."""
    with handled_by(interrupt):
        try:
            return work()
        except Interrupted as stop:
            ignore()  # a second signal does not change the exit code
            print("tatara: stopped", file=sys.stderr, flush=True)
            return stop.exit_code
