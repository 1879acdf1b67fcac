"""One attempt on one node: torchrun, the heartbeats of its ranks, and the outcome."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workloads import signals
from workloads.errors import EXIT_DONE, EXIT_FAILED, EXIT_RETRY, EXIT_USER
from workloads.launch.messages import Outcome, StopRequest
from workloads.launch.rendezvous import Rendezvous
from workloads.processes import PARENT, is_stopped, memory_limit, out_of_memory_kills
from workloads.run import Run
from workloads.run.events import Event, Phase
from workloads.run.session import INTERRUPTIBLE, NOTHING_LOST
from workloads.signals import Stop

_TICK = 0.1
_LOOK = 1.0  # seconds between two reads of the heartbeats, which are written once a second
# Once another node is in trouble, this node's ranks get this long to notice and end by themselves.
_GRACE = 15.0
_LATE = 5.0  # seconds; when all ranks stand still, one without a heartbeat for so long is the cause
_FROZEN = 60.0  # seconds without a heartbeat; less where hang_timeout is less
_WAITING_PHASES = (Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)
# Seconds for a rank with nothing to save to end by itself after a stop, and, after the last
# heartbeat of the ranks here, for torchrun. In a call of torch that waits for a rank or
# a torchrun that has ended, neither would end for minutes: no Python runs there, no handler either.
_HEED = 5.0


@dataclass
class _Seen:
    """The newest heartbeat of a rank, and when it came, by this process's own clock."""

    beat: int = -1
    beat_at: float = field(default_factory=time.monotonic)
    progress: int = -1
    progress_at: float = field(default_factory=time.monotonic)


@dataclass
class Attempt:
    """Starts torchrun and watches it until it has ended."""

    run: Run
    number: int
    ranks: Sequence[int]
    rendezvous: Rendezvous
    stop: Stop
    hang_timeout: float
    _process: subprocess.Popen[bytes] | None = None
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _wish: StopRequest | None = None
    _beats_at_wish: dict[int, int] = field(default_factory=dict)
    _wish_at: float = 0.0
    _ended_at: float | None = None
    _trouble: tuple[float, str] | None = None

    def go(self, words: Sequence[str], env: Mapping[str, str]) -> Outcome:
        """Run to the end; the outcome is this node's part only."""
        kills = out_of_memory_kills()  # the kernel's counter only grows: the difference is ours
        command = [
            sys.executable,
            "-m",
            "workloads.launch.torchrun",
            *words,
            "-m",
            "workloads.launch.rank",
        ]
        log = self.run.path / "logs" / f"agent-{min(self.ranks)}.log"
        for rank in self.ranks:  # remove heartbeats of an earlier attempt
            (self.run.path / "status" / f"{rank}.json").unlink(missing_ok=True)
        with log.open("ab") as output, signals.held_back():
            # Its own session: a Ctrl-C in the terminal reaches only this process, which passes it
            # on to the ranks. Ranks print for the user on standard output; what torchrun
            # and the libraries write to standard error goes to a log.
            self._process = subprocess.Popen(
                command,
                env={**env, PARENT: str(os.getpid())},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                stderr=output,
            )
        try:
            reason = self._watch(self._process)
        finally:
            self._end()
        if reason is not None:
            return reason
        return self._outcome(self._process.returncode, out_of_memory_kills() - kills)

    def _watch(self, process: subprocess.Popen[bytes]) -> Outcome | None:
        looked, hung = time.monotonic(), None
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TICK)
            if self.stop.now:
                return self._stopped("stopped at once")
            if self._wish is None and (wish := self._stop_request()):
                self._wish, self._wish_at = wish, time.monotonic()
                self.rendezvous.ask_stop(wish)
                statuses = self.statuses()
                if len(statuses) < len(self.ranks):
                    # Some rank has not even started, so nothing can be lost.
                    return self._stopped(NOTHING_LOST)
                self._beats_at_wish = {rank: status["beat"] for rank, status in statuses.items()}
                self._ask_ranks_to_stop(wish)
            if time.monotonic() - looked > _LOOK:
                if self._has_ended():
                    return None
                if self._wish and self._waits_with_nothing_to_lose():
                    return self._stopped(NOTHING_LOST)
                looked, hung = time.monotonic(), self._hung()
            if hung:
                self._dump_stacks()
                return self._stopped(hung) if self._wish else Outcome(EXIT_RETRY, hung)
            if late := self._peer_trouble():
                return Outcome(EXIT_RETRY, late)
        return None

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Heartbeats of this node's ranks in this attempt."""
        every = self._all_statuses()
        return {rank: status for rank, status in every.items() if rank in self.ranks}

    def _all_statuses(self) -> dict[int, dict[str, Any]]:
        """Heartbeats of all nodes that write into the same folder."""
        return {
            rank: status
            for rank, status in self.run.statuses().items()
            if status.get("attempt") == self.number
        }

    def _stop_request(self) -> StopRequest | None:
        """A stop requested by signal here, or by another node."""
        if number := self.stop():
            return StopRequest(number)
        return self.rendezvous.stop_asked()

    def _ask_ranks_to_stop(self, wish: StopRequest) -> None:
        """Signal the ranks directly: torchrun would kill them before a long save has ended."""
        for status in self.statuses().values():
            _send(status, wish.number)

    def _has_ended(self) -> bool:
        """Whether all ranks here have ended, and torchrun waits for those of other nodes."""
        if not all("code" in self.statuses().get(rank, {}) for rank in self.ranks):
            return False
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        return time.monotonic() - self._ended_at > _HEED

    def _waits_with_nothing_to_lose(self) -> bool:
        """Whether a rank with nothing to save does not react to a stop."""
        if time.monotonic() - self._wish_at < _HEED:
            return False
        # The next heartbeat may have started before the stop; the one after it did not.
        return any(
            "code" not in status
            and status["phase"] in INTERRUPTIBLE
            and status["beat"] > self._beats_at_wish[rank] + 1
            for rank, status in self.statuses().items()
        )

    def _stopped(self, reason: str) -> Outcome:
        """The outcome of a stop: 3 where the run has a checkpoint; names the node that asked."""
        wish = self._wish or StopRequest(self.stop() or signal.SIGTERM)
        by = f" (asked by {wish.by})" if wish.by else ""
        return Outcome(self.run.stop_code(wish.number), f"{reason}{by}")

    def _hung(self) -> str | None:
        """The name of a rank that is frozen, or that holds up all the others.

        A rank without a heartbeat for _FROZEN seconds is suspended, or stuck where no Python runs.
        Without progress of any rank for hang_timeout they wait for one of them: it is the one whose
        heartbeat is _LATE seconds old, else the one with the least progress, on whatever node.
        """
        now = time.monotonic()
        statuses = self.statuses()
        for rank, status in statuses.items():
            seen = self._seen.setdefault(rank, _Seen())
            if status["beat"] != seen.beat:
                seen.beat, seen.beat_at = status["beat"], now
            if status["progress"] != seen.progress:
                seen.progress, seen.progress_at = status["progress"], now
        # Ages are by this process's clock: heartbeats of other hosts have other clocks.
        alive = {rank: status for rank, status in statuses.items() if "code" not in status}
        for rank, status in alive.items():
            if now - self._seen[rank].beat_at > min(_FROZEN, self.hang_timeout):
                return f"{_name(rank, status)} hangs: no heartbeat for {self._age(rank):.0f} s"
        busy = [rank for rank, status in alive.items() if status["phase"] in _WAITING_PHASES]
        # All of them: a rank that compiles or reads data may take long, and the others wait for it.
        if busy and len(busy) == len(alive):
            newest = max(self._seen[rank].progress_at for rank in busy)
            if now - newest > self.hang_timeout:
                for rank in busy:
                    if self._age(rank) > _LATE:
                        return f"{_name(rank, statuses[rank])} hangs: no heartbeat"
                behind, status = self._furthest_behind()
                return f"{_name(behind, status)} hangs: no progress for {now - newest:.0f} s"
        return None

    def _furthest_behind(self) -> tuple[int, dict[str, Any]]:
        """The rank that others wait for, on any node whose heartbeats are visible here."""
        waiting = {
            rank: status
            for rank, status in self._all_statuses().items()
            if "code" not in status and status["phase"] in _WAITING_PHASES
        }
        return min(waiting.items(), key=lambda item: item[1]["progress"])

    def _age(self, rank: int) -> float:
        return time.monotonic() - self._seen[rank].beat_at

    def _dump_stacks(self) -> None:
        """Make every rank write its stacks into its log; a suspended one cannot and is named."""
        for rank, status in self.statuses().items():
            if is_stopped(status["pid"]):
                self.run.event(Event.SUSPENDED, rank=rank, pid=status["pid"], host=status["host"])
            _send(status, signal.SIGUSR1)
        time.sleep(0.5)  # faulthandler writes from the signal handler and gives no notice when done

    def _peer_trouble(self) -> str | None:
        """Another node's failure, once the ranks here had their time to end by themselves."""
        if self._trouble is None:
            text = self.rendezvous.trouble()
            self._trouble = (time.monotonic(), text) if text else None
        if self._trouble and time.monotonic() - self._trouble[0] > _GRACE:
            return self._trouble[1]
        return None

    def _end(self) -> None:
        """End torchrun, all ranks and what they started.

        A rank ends with its parent once it runs our code; one that still starts would be left over.
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        import psutil

        with contextlib.suppress(ProcessLookupError):
            # Suspended, torchrun starts no more ranks, and collects none whose pid could be reused.
            os.killpg(process.pid, signal.SIGSTOP)
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _outcome(self, code: int, memory_kills: int) -> Outcome:
        statuses = self.statuses()
        ended = [status for status in statuses.values() if "code" in status]
        failed = [status for status in ended if status["phase"] == Phase.FAILED]
        stopped = [status for status in ended if status["phase"] == Phase.STOPPED]
        done = [status for status in ended if status["phase"] == Phase.DONE]
        if len(done) == len(ended) == len(self.ranks):
            return Outcome(EXIT_DONE, "")
        # Ordered by what explains the rest: a killed process before the failures of its peers, an
        # error that a restart would repeat before a stop, a stop before lost connections.
        if memory_kills > 0:
            limit = memory_limit()
            text = f" (limit {limit / 2**30:.1f} GiB)" if limit else ""
            return Outcome(EXIT_RETRY, f"the kernel killed a process for host memory{text}")
        for wanted in (EXIT_USER, EXIT_FAILED):
            for status in failed:
                if status["code"] == wanted:
                    return Outcome(wanted, status["reason"])
        if self._wish or self.stop():
            unsaved = "stopped; the ranks ended before they had saved"
            return self._stopped(stopped[0]["reason"] if stopped else unsaved)
        if code > 128:
            gone = [rank for rank in self.ranks if "code" not in statuses.get(rank, {})]
            name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else code
            return Outcome(EXIT_RETRY, f"rank {', '.join(map(str, gone))} was ended by {name}")
        if failed:
            # The other ranks only lost the one with the real reason.
            cause = min(failed, key=lambda status: status["reason"].startswith("lost contact"))
            return Outcome(EXIT_RETRY, cause["reason"])
        if ended and len(stopped) == len(ended):
            return Outcome(stopped[0]["code"], stopped[0]["reason"])
        logs = self.run.path / "logs"
        return Outcome(EXIT_FAILED, f"the ranks ended without a reason; see {logs}")


def _send(status: Mapping[str, Any], number: int) -> None:
    """Signal a rank; not one that has ended, whose pid may be that of another process by now."""
    if "code" not in status:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(status["pid"], number)


def _name(rank: int, status: Mapping[str, Any]) -> str:
    suspended = ", suspended" if is_stopped(status["pid"]) else ""
    here = status["host"] == socket.gethostname()
    place = f"pid {status['pid']}{suspended}" if here else status["host"]
    return f"rank {rank} (node {status['node']}, {place})"
