"""Node 0's side of the rendezvous."""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_USER,
    STOPS,
    Retry,
    Stopped,
    UserError,
)
from workloads.launch.connection import Connection, Link, WrongSecretError, welcome
from workloads.launch.messages import Hello, Meeting, Outcome, StopRequest, Terms
from workloads.launch.network import listener

# Exit codes, the worst first. All stops are equal: then node 0, which has the checkpoints, counts.
_GRAVITY = {EXIT_USER: 0, EXIT_FAILED: 1, **dict.fromkeys(STOPS, 2), EXIT_RETRY: 3, EXIT_DONE: 4}

# Seconds for the other nodes to report once node 0's part has ended. Nothing is sent to them
# meanwhile: their ranks notice lost peers by themselves, or have ended already.
_SETTLE = 20.0
_MOST_UNSEATED = 16  # connections without a proof yet


@dataclass
class Coordinator:
    """Node 0's side."""

    me: Hello
    nodes: int
    address: str
    port: int
    run_id: str
    outputs: Path
    terms: Terms
    secret: bytes
    _connections: dict[int, Connection] = field(default_factory=dict)
    _hellos: dict[int, Hello] = field(default_factory=dict)
    # Those that were told to start: a node that is back on another one is not in this attempt.
    _of_attempt: dict[int, Connection] = field(default_factory=dict)
    _unseated: list[Link] = field(default_factory=list)
    _strangers: set[str] = field(default_factory=set)
    _seating: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # torchrun's own message names no port.
        listener(self.address, self.port - 1, self.terms.pause).close()
        self._listener = listener(self.address, self.port, self.terms.pause)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, (host, *_) = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.1)  # a caller that has left, or too many open files
                continue
            link = Link(sock, self.terms.peer_timeout)
            self._unseated.append(link)
            if len(self._unseated) > max(_MOST_UNSEATED, 2 * self.nodes):
                # A node proves itself in milliseconds: whoever waited longest is no node.
                self._unseated.pop(0).close()
            threading.Thread(target=self._receive, args=(link, host), daemon=True).start()

    def _receive(self, link: Link, host: str) -> None:
        """Admit a node, and disconnect a stranger."""
        try:
            hello = welcome(link, self.secret)
        except (OSError, ValueError) as error:
            link.close()
            if isinstance(error, WrongSecretError):
                self._report_wrong_secret(host)
            return
        finally:
            with contextlib.suppress(ValueError):
                self._unseated.remove(link)
        self._seat(hello, Connection(link, self.terms.peer_timeout / 5))

    def _report_wrong_secret(self, host: str) -> None:
        if host not in self._strangers and len(self._strangers) < _MOST_UNSEATED:
            self._strangers.add(host)
            self.terms.report(f"{host} does not know the secret of this run and was not let in")

    def _seat(self, hello: Hello, connection: Connection) -> None:
        # A node that lost its connection may be back before this side has noticed.
        until = time.monotonic() + self.terms.peer_timeout
        while self._is_here(hello) and time.monotonic() < until:
            time.sleep(0.05)
        # Two connections may claim one number at the same time: only one of them is admitted.
        with self._seating:
            refusal = self._refusal(hello)
            if not refusal:
                self._hellos[hello.node], self._connections[hello.node] = hello, connection
                return
        connection.send("verdict", code=EXIT_USER, again=False, reason=refusal)
        until = time.monotonic() + self.terms.peer_timeout  # to read it; then it closes its side
        while connection.open and time.monotonic() < until:
            time.sleep(0.05)
        connection.close()

    def _is_here(self, hello: Hello) -> bool:
        """Whether a node of this number and host is connected, and not yet known to be lost."""
        seated, known = self._connections.get(hello.node), self._hellos.get(hello.node)
        if seated is None or known is None or known.host != hello.host:
            return False
        return not seated.lost(self.terms.peer_timeout)

    def _refusal(self, hello: Hello) -> str:
        """Why a node is not admitted; empty for one that is expected, or that has come back."""
        if hello.node not in range(1, self.nodes):
            return (
                f"node {hello.node} ({hello.host}) is not expected; set NODE_RANK from 1 to "
                f"{self.nodes - 1} there, and NNODES as here"
            )
        seated = self._connections.get(hello.node)
        if seated is not None and not seated.lost(self.terms.peer_timeout):
            return (
                f"node {hello.node} is {self._hellos[hello.node].host} already, and {hello.host} "
                "says that it is too; give each node a NODE_RANK of its own"
            )
        return ""

    def missing(self) -> list[int]:
        """Nodes that have not come, or have left again."""
        silence = self.terms.peer_timeout
        return [
            node
            for node in range(1, self.nodes)
            if node not in self._connections or self._connections[node].lost(silence)
        ]

    def meet(self, attempt: int) -> Meeting:
        """Wait for every node, compare settings, start all; Retry names the missing ones."""
        until = time.monotonic() + self.terms.node_timeout
        with self._probe_file() as (name, word):
            shared = None
            # A node that goes away while it is asked is waited for again: it may come back.
            while shared is None:
                self._wait_for_nodes(attempt, until)
                # Before the comparison: a node that comes from here on is in no attempt yet.
                self._of_attempt = dict(self._connections)
                self._compare()
                shared = self._seen_by_all(name, word)
        self._heed_stop()
        hosts = (self.me.host, *(self._hellos[node].host for node in range(1, self.nodes)))
        meeting = Meeting(self.run_id, attempt, shared, hosts)
        for connection in self._of_attempt.values():
            connection.send("start", **asdict(meeting))
        return meeting

    def _wait_for_nodes(self, attempt: int, until: float) -> None:
        reported = time.monotonic() - 12  # the first line after 3 s, further ones every 15 s
        while missing := self.missing():
            self._heed_stop()
            if time.monotonic() - reported > 15:
                reported = time.monotonic()
                how = f"; {self.terms.cure(missing[0])}" if attempt else ""
                self.terms.report(f"waiting for {_names(missing)} of {self.nodes} nodes{how}")
            if not self.terms.pause(until):
                raise Retry(
                    f"{_names(missing)} did not come within {self.terms.node_timeout:.0f} s; "
                    f"{self.terms.cure(missing[0])}, or check the firewall for port {self.port}"
                )

    def _heed_stop(self) -> None:
        if wish := self.stop_asked():
            raise Stopped(f"stopped by {wish.by} while the nodes were meeting")

    def _compare(self) -> None:
        # With other settings ranks would wait in different collectives, until a timeout.
        for node, hello in list(self._hellos.items()):
            if (hello.config, hello.ranks) != (self.me.config, self.me.ranks):
                raise UserError(
                    f"node {node} ({hello.host}) has other settings than node 0 "
                    f"({hello.ranks} ranks there, {self.me.ranks} here); give both the same "
                    "profile, .env and flags"
                )

    @contextlib.contextmanager
    def _probe_file(self) -> Iterator[tuple[str, str]]:
        """A file in the outputs folder while the nodes meet, to see who shares it: name, word."""
        # A random word: a file of another probe, or of another run, never counts.
        name, word = f".probe-{secrets.token_hex(4)}", secrets.token_hex(8)
        path = self.outputs / name
        self.outputs.mkdir(parents=True, exist_ok=True)
        path.write_text(word)
        try:
            yield name, word
        finally:
            path.unlink(missing_ok=True)

    def _seen_by_all(self, name: str, word: str) -> bool | None:
        """Whether every node sees the probe file; None where one went away before it answered."""
        for connection in self._of_attempt.values():
            connection.send("probe", name=name, word=word)
        answers = [self._answer(*member) for member in self._of_attempt.items()]
        return None if None in answers else all(answers)

    def _answer(self, node: int, connection: Connection) -> bool | None:
        until = time.monotonic() + self.terms.peer_timeout
        while True:
            lost = connection.lost(self.terms.peer_timeout)
            if answer := connection.take("seen"):
                return bool(answer["seen"])
            if lost:
                return None
            self._heed_stop()
            if not self.terms.pause(until, 0.02):
                raise Retry(f"{self._name(node)}, did not answer while the nodes were meeting")

    def _broadcast(self, kind: str, **facts: Any) -> None:
        # A copy, as below: a thread admits nodes meanwhile.
        for connection in list(self._connections.values()):
            connection.send(kind, **facts)

    def trouble(self) -> str | None:
        """Why this attempt cannot continue, if another node is the reason."""
        silence = self.terms.peer_timeout
        members = self._of_attempt.items()
        if lost := [node for node, connection in members if connection.lost(silence)]:
            return self._lost(lost)
        for node, connection in members:
            # Only peeked at: `settle` takes it. A node that is done or stopped is no trouble.
            result = connection.peek("result")
            if result and result["code"] not in (EXIT_DONE, *STOPS):
                return f"node {node} failed: {result['reason']}"
        return None

    def ask_stop(self, wish: StopRequest) -> None:
        """Tell every node to stop its ranks."""
        self._broadcast("stop", number=wish.number, by=wish.by or self._name(0))

    def stop_asked(self) -> StopRequest | None:
        """The request of another node to stop the job, with that node's name."""
        for node, connection in list(self._connections.items()):
            if stop := connection.peek("stop"):
                return StopRequest(stop["number"], self._name(node))
        return None

    def _name(self, node: int) -> str:
        host = self._hellos[node].host if node else self.me.host
        return f"node {node}, {host}"

    def _lost(self, nodes: list[int]) -> str:
        hosts = [self._hellos[node].host for node in nodes if node in self._hellos]
        return f"lost {_names(nodes)} ({', '.join(hosts)})"

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        """Wait for all nodes' outcomes, decide for all, and send them the verdict."""
        # One deadline for all: ranks of every node have had their own time to end by now.
        until = time.monotonic() + _SETTLE
        results = [self._result(*member, until) for member in self._of_attempt.items()]
        worst = min([mine, *results], key=_gravity)
        verdict = Outcome(worst.code, worst.reason, worst.code == EXIT_RETRY and may_restart)
        self._broadcast("verdict", **asdict(verdict))
        return verdict

    def _result(self, node: int, connection: Connection, until: float) -> Outcome:
        while True:
            lost = connection.lost(self.terms.peer_timeout) or time.monotonic() > until
            if result := connection.take("result"):
                return Outcome(result["code"], result["reason"])
            if lost:
                return Outcome(EXIT_RETRY, self._lost([node]))
            time.sleep(0.05)

    def end(self, outcome: Outcome) -> None:
        """Send the other nodes the end of the job, outside of an attempt."""
        self._broadcast("verdict", **asdict(outcome))

    def close(self) -> None:
        # Closing alone leaves the port open for as long as the thread waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # A member closes its side once it has read the verdict; until then the connection stays.
        until = time.monotonic() + 2  # a member looks for it every 0.05 s (Member.settle)
        while (
            any(connection.open for connection in list(self._connections.values()))
            and time.monotonic() < until
        ):
            time.sleep(0.02)
        for connection in list(self._connections.values()):
            connection.close()


def _gravity(outcome: Outcome) -> tuple[int, bool]:
    """Sort key of outcomes: the worst code first, and a cause before its consequences."""
    return _GRAVITY[outcome.code], outcome.reason.startswith("lost contact")


def _names(nodes: list[int]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))
