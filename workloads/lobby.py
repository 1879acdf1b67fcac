"""Where the nodes of a job meet: node 0 coordinates, every line on the wire is one JSON object.

The lobby is up before torch is imported and stays up beside the training. It gives all nodes one
run id, finds out whether they share `outputs/`, notices a node that is gone, and makes all nodes
end or restart together. It listens on the port after MASTER_PORT.
"""

import contextlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_STOPPED,
    EXIT_USER,
    Retry,
    Stopped,
    UserError,
)
from workloads.network import free_address
from workloads.wire import Wire

_WORST_FIRST = (EXIT_USER, EXIT_FAILED, EXIT_STOPPED, EXIT_RETRY, EXIT_DONE)
_SETTLE = 20.0  # seconds that the other nodes get to report once one node's part has ended


@dataclass(frozen=True)
class Hello:
    """What a node says of itself; `config` is a digest, so that two settings never train as one."""

    node: int
    host: str
    ranks: int
    config: str


@dataclass(frozen=True)
class Meeting:
    """What all nodes know once they have met."""

    run_id: str
    attempt: int
    shared: bool
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How one node's part, or the whole job, ended."""

    code: int
    reason: str
    again: bool = False


@dataclass
class Terms:
    """Bounds of the waiting, and where to look for a stop."""

    node_timeout: float
    peer_timeout: float
    stopping: Callable[[], bool]
    tell: Callable[[str], None]

    def pause(self, until: float, seconds: float = 0.1) -> bool:
        """Wait a moment; False once `until` (monotonic seconds) has passed; Stopped on a stop."""
        if self.stopping():
            raise Stopped("stopped while waiting for other nodes")
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        return time.monotonic() < until


class Alone:
    """The lobby of a job with one node."""

    def __init__(self, run_id: str, host: str) -> None:
        self._run_id, self._host = run_id, host

    def meet(self, attempt: int) -> Meeting:
        return Meeting(self._run_id, attempt, shared=True, hosts=(self._host,))

    def trouble(self) -> str | None:
        return None

    def ask_stop(self) -> None:
        return None

    def stop_asked(self) -> bool:
        return False

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        return Outcome(mine.code, mine.reason, again=mine.code == EXIT_RETRY and may_restart)

    def close(self) -> None:
        return None


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
    _wires: dict[int, Wire] = field(default_factory=dict)
    _hellos: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free_address(self.address, self.port - 1, self.terms.pause)  # torchrun's, who names no port
        place = free_address(self.address, self.port, self.terms.pause)
        self._door = socket.create_server(place, backlog=64)
        threading.Thread(target=self._welcome, daemon=True).start()

    def _welcome(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            wire = Wire(connection, self.terms.peer_timeout / 5)
            threading.Thread(target=self._seat, args=(wire,), daemon=True).start()

    def _seat(self, wire: Wire) -> None:
        try:
            hello = wire.inbox.get(timeout=self.terms.peer_timeout)
        except queue.Empty:
            wire.close()
            return
        node = int(hello.get("node", 0))
        if hello["type"] != "hello" or (refusal := self._refusal(node, str(hello.get("host")))):
            wire.send("verdict", code=EXIT_USER, again=False, reason=refusal)
            return
        self._hellos[node], self._wires[node] = hello, wire

    def _refusal(self, node: int, host: str) -> str:
        """Why a node is not let in; empty for one that is expected, or that has come back."""
        if node not in range(1, self.nodes):
            return (
                f"node {node} ({host}) is not expected; set NODE_RANK from 1 to {self.nodes - 1} "
                "there, and NNODES as here"
            )
        seated = self._wires.get(node)
        known = self._hellos.get(node, {}).get("host")
        if seated and host != known and not seated.lost(self.terms.peer_timeout):
            return (
                f"node {node} is {known} already, and {host} says that it is too; give each node "
                "a NODE_RANK of its own"
            )
        return ""

    def missing(self) -> list[int]:
        """Nodes that have not come, or have gone again."""
        silence = self.terms.peer_timeout
        return [
            node
            for node in range(1, self.nodes)
            if node not in self._wires or self._wires[node].lost(silence)
        ]

    def meet(self, attempt: int) -> Meeting:
        """Wait for every node, compare settings, start all; Retry names the missing ones."""
        until = time.monotonic() + self.terms.node_timeout
        told = time.monotonic() - 12  # a few seconds of waiting are nothing to speak of
        while missing := self.missing():
            if time.monotonic() - told > 15:
                told = time.monotonic()
                self.terms.tell(f"waiting for {_names(missing)} of {self.nodes} nodes")
            if not self.terms.pause(until):
                raise Retry(
                    f"{_names(missing)} did not come within {self.terms.node_timeout:.0f} s; start "
                    f"it there with NODE_RANK and MASTER_ADDR set, or check the firewall for port "
                    f"{self.port}"
                )
        self._compare()
        shared = self._probe()
        hosts = (self.me.host, *(self._hellos[node]["host"] for node in range(1, self.nodes)))
        meeting = Meeting(self.run_id, attempt, shared, hosts)
        self._broadcast("start", **asdict(meeting))
        return meeting

    def _compare(self) -> None:
        for node, hello in self._hellos.items():
            if (hello["config"], hello["ranks"]) != (self.me.config, self.me.ranks):
                raise UserError(
                    f"node {node} ({hello['host']}) has other settings than node 0 "
                    f"({hello['ranks']} ranks there, {self.me.ranks} here); give both the same "
                    "profile, .env and flags"
                )

    def _probe(self) -> bool:
        """Whether every node sees a file that node 0 just wrote."""
        name, word = f".probe-{secrets.token_hex(4)}", secrets.token_hex(8)
        path = self.outputs / name
        self.outputs.mkdir(parents=True, exist_ok=True)
        path.write_text(word)
        try:
            self._broadcast("probe", name=name, word=word)
            return all(self._ask(node)["seen"] for node in self._wires)
        finally:
            path.unlink(missing_ok=True)

    def _ask(self, node: int) -> dict[str, Any]:
        until = time.monotonic() + self.terms.peer_timeout
        while (answer := self._wires[node].take("seen")) is None:
            if self._wires[node].lost(self.terms.peer_timeout) or not self.terms.pause(until, 0.02):
                raise Retry(f"node {node} went away while the nodes were meeting")
        return answer

    def _broadcast(self, kind: str, **facts: Any) -> None:
        for wire in self._wires.values():
            wire.send(kind, **facts)

    def trouble(self) -> str | None:
        """Why this attempt cannot go on, if another node is the reason."""
        if missing := self.missing():
            return self._lost(missing)
        for node, wire in self._wires.items():
            result = wire.peek("result")
            if result and result["code"] not in (EXIT_DONE, EXIT_STOPPED):
                return f"node {node} failed: {result['reason']}"
        return None

    def ask_stop(self) -> None:
        """Have every node ask its ranks to stop."""
        self._broadcast("stop")

    def stop_asked(self) -> bool:
        """Whether any node wants the job to stop; the others are told on the way."""
        asked = any(wire.peek("stop") for wire in self._wires.values())
        if asked:
            self.ask_stop()
        return asked

    def _lost(self, nodes: list[int]) -> str:
        hosts = [str(self._hellos[node]["host"]) for node in nodes if node in self._hellos]
        return f"lost {_names(nodes)} ({', '.join(hosts)})"

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        """Wait for all nodes' outcomes, decide for all, and tell them."""
        outcomes = [mine]
        until = time.monotonic() + _SETTLE
        for node, wire in self._wires.items():
            while (result := wire.take("result")) is None:
                late = time.monotonic() > until
                if late or wire.lost(self.terms.peer_timeout):
                    result = {"code": EXIT_RETRY, "reason": self._lost([node])}
                    break
                time.sleep(0.05)
            outcomes.append(Outcome(result["code"], result["reason"]))
        worst = min(outcomes, key=_gravity)
        verdict = Outcome(worst.code, worst.reason, worst.code == EXIT_RETRY and may_restart)
        self._broadcast("verdict", **asdict(verdict))
        return verdict

    def end(self, outcome: Outcome) -> None:
        """Tell the other nodes that the job has ended outside of an attempt."""
        self._broadcast("verdict", **asdict(outcome))

    def close(self) -> None:
        # Closing alone leaves the port open for as long as the thread waits in accept().
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        # A member closes its side once it has read the verdict; until then the line stays up.
        until = time.monotonic() + 2
        while any(wire.open for wire in self._wires.values()) and time.monotonic() < until:
            time.sleep(0.02)
        for wire in self._wires.values():
            wire.close()


@dataclass
class Member:
    """Every other node's side."""

    me: Hello
    address: str
    port: int
    outputs: Path
    terms: Terms
    _wire: Wire | None = None

    def meet(self, attempt: int) -> Meeting:
        """Find node 0 and wait for its start; Retry where it does not come."""
        until = time.monotonic() + self.terms.node_timeout
        while True:
            wire = self._connected(until)
            if probe := wire.peek("probe"):
                wire.take("probe")
                wire.send("seen", seen=self._sees(probe["name"], probe["word"]))
            if start := wire.peek("start"):
                wire.take("start")
                return Meeting(
                    start["run_id"], start["attempt"], start["shared"], tuple(start["hosts"])
                )
            # One for the attempt before says `again` to a node that came back meanwhile. Nothing
            # is taken here: what comes at this very moment would be lost with it.
            if (verdict := wire.peek("verdict")) and not verdict["again"]:
                _raise(verdict)
            if not self.terms.pause(until, 0.02):
                raise Retry(
                    f"node 0 ({self.address}:{self.port}) did not start the job within "
                    f"{self.terms.node_timeout:.0f} s; see its log for the node it waits for"
                )

    def _connected(self, until: float) -> Wire:
        if self._wire is not None and not self._wire.lost(self.terms.peer_timeout):
            return self._wire
        self.terms.tell(f"looking for node 0 at {self.address}:{self.port}")
        while True:
            try:
                connection = socket.create_connection((self.address, self.port), timeout=5)
                connection.settimeout(None)
                break
            except OSError as error:
                if not self.terms.pause(until, 0.3):
                    raise Retry(
                        f"node 0 did not answer at {self.address}:{self.port} within "
                        f"{self.terms.node_timeout:.0f} s ({error}); check MASTER_ADDR, "
                        "MASTER_PORT, that node 0 runs, and its firewall"
                    ) from None
        self._wire = Wire(connection, self.terms.peer_timeout / 5)
        self._wire.send("hello", **asdict(self.me))
        return self._wire

    def _sees(self, name: str, word: str) -> bool:
        if "/" in name:
            return False
        try:
            return (self.outputs / name).read_text() == word
        except OSError:
            return False

    def trouble(self) -> str | None:
        if self._wire is None or self._wire.lost(self.terms.peer_timeout):
            return f"lost node 0 ({self.address})"
        if verdict := self._wire.peek("verdict"):
            return f"node 0 ended the attempt: {verdict['reason']}"
        return None

    def ask_stop(self) -> None:
        if self._wire is not None:
            self._wire.send("stop")

    def stop_asked(self) -> bool:
        return self._wire is not None and self._wire.peek("stop") is not None

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        """Report and take node 0's word; where node 0 is gone, look for it again."""
        wire = self._wire
        if wire is None:
            return Outcome(EXIT_RETRY, "lost node 0", may_restart)
        wire.send("result", code=mine.code, reason=mine.reason)
        while not wire.lost(self.terms.peer_timeout):
            if verdict := wire.take("verdict"):
                return Outcome(verdict["code"], verdict["reason"], verdict["again"])
            time.sleep(0.05)
        if mine.code in (EXIT_USER, EXIT_FAILED, EXIT_STOPPED):
            return mine
        return Outcome(EXIT_RETRY, f"lost node 0 ({self.address})", may_restart)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


Lobby = Alone | Coordinator | Member


def _gravity(outcome: Outcome) -> tuple[int, bool]:
    """The worst code first, and a cause before what it made others lose."""
    return _WORST_FIRST.index(outcome.code), outcome.reason.startswith("lost contact")


def _names(nodes: list[int]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))


def _raise(verdict: dict[str, Any]) -> None:
    kinds = {EXIT_USER: UserError, EXIT_STOPPED: Stopped, EXIT_RETRY: Retry}
    raise kinds.get(verdict["code"], Retry)(f"node 0 ended the job: {verdict['reason']}")
