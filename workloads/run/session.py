"""One rank's part in a run: its heartbeat, log, phase, and stop requests."""

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from workloads import signals
from workloads.environment import without_secrets
from workloads.errors import Stopped
from workloads.processes import lossy_output, make_output_lossy, resident_bytes
from workloads.run.directory import Run
from workloads.run.events import Event, Phase
from workloads.signals import Interrupted

BEAT = 1.0  # seconds between two heartbeats
# Phases that a stop may interrupt at once, because nothing would be lost.
INTERRUPTIBLE = (Phase.STARTING, Phase.PREPARING)
NOTHING_LOST = "stopped before the first step; nothing was lost"


@dataclass
class Session:
    """Made once by each rank; `phase`, `progress` and `tell` are what training code calls.

    A thread writes the heartbeat, so that a rank that waits for its peers still shows as alive;
    `progress` counts what the main thread has done, so that a hanging rank can be recognised.
    """

    run: Run
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    attempt: int = 0
    shared: bool = True
    stop_signal: int = 0
    _status: dict[str, Any] = field(default_factory=dict)
    _console: TextIO = sys.stdout
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def log(self) -> Path:
        """Log file of this rank and its libraries."""
        return self.run.path / "logs" / f"{self.node}-{self.rank}.log"

    def begin(self) -> None:
        """Take over signals and output, and start the heartbeat."""
        self._status = {
            "rank": self.rank,
            "node": self.node,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "attempt": self.attempt,
            "phase": Phase.STARTING,
            "step": 0,
            "progress": 0,
            "beat": 0,
        }
        self._own_log()
        # The supervisor asks for stacks before it ends a hanging attempt.
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        self._write()  # before torch is imported: until then the rank counts as not started
        threading.Thread(target=self._beat, daemon=True).start()
        signals.listen(self._on_signal)

    def _own_log(self) -> None:
        """Send everything this rank and its libraries print to its log; keep the console apart."""
        self._console = lossy_output(os.dup(1))
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        make_output_lossy()

    @property
    def console(self) -> TextIO:
        """Stream of the person who started the run."""
        return self._console

    def report(self, text: str) -> None:
        """Say something once for the whole job: rank 0 prints, every rank logs; never a secret."""
        text = without_secrets(text, os.environ)
        print(text, file=sys.stderr, flush=True)
        if self.is_main:
            print(text, file=self._console, flush=True)

    def event(self, name: Event, **facts: Any) -> None:
        """Write an event of the job; only rank 0 does."""
        if self.is_main:
            self.run.event(name, **facts)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Show what this rank is doing; a stop in a phase with nothing to lose ends it at once."""
        before = self._status["phase"]
        self.enter(name)
        try:
            yield
        except BaseException:
            self.progress(phase=before)  # code that catches this continues in the old phase
            raise
        self.enter(before)

    def enter(self, name: Phase) -> None:
        """Enter a phase; a pending stop takes effect before it."""
        self.progress(phase=name)
        if self.stopping and name in INTERRUPTIBLE:
            raise Stopped(NOTHING_LOST)

    def progress(self, **facts: Any) -> None:
        """Record progress of the main thread; written with the next heartbeat."""
        with self._lock:
            self._status.update(facts)
            self._status["progress"] += 1

    @property
    def stopping(self) -> bool:
        return self.stop_signal > 0

    @property
    def may_be_cut_short(self) -> bool:
        """Whether nothing would be lost by a stop at this moment."""
        return self._status["phase"] in INTERRUPTIBLE

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Act on the first signal alone; "now" is for the supervisor to say, which then kills.

        The same stop may come from Slurm or systemd, from torchrun's agent and from the supervisor.
        """
        if self.stopping:
            return
        self.stop_signal = number
        if self.may_be_cut_short:
            # Not an Exception, which a library that is being imported would catch as its own.
            raise Interrupted(number)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            self._write()

    def _write(self) -> None:
        # Lock for the whole write: an older beat must not overwrite the final status.
        with self._writing:
            with self._lock:
                self._status["beat"] += 1
                self._status["memory"] = resident_bytes()
                status = dict(self._status)
            try:
                self.run.write_status(self.rank, status)
            except OSError as error:
                # A full disk must not end a run; the next beat tries again.
                print(f"heartbeat: {error.strerror}", file=sys.stderr)

    def finish_stopped(self, reason: str = NOTHING_LOST) -> None:
        """Write the last heartbeat of a stop, with 3 where the run has a checkpoint."""
        self.finish(Phase.STOPPED, self.run.stop_code(self.stop_signal or signal.SIGTERM), reason)

    def finish(self, phase: Phase, code: int, reason: str = "") -> None:
        """Write the last heartbeat: done, stopped or failed, with the exit code and the reason."""
        self._done.set()
        reason = without_secrets(reason, os.environ)
        with self._lock:
            self._status.update(phase=phase, code=code, reason=reason, ended=time.time())
        self._write()
