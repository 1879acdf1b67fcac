"""The other nodes' side of the rendezvous."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import (
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_USER,
    STOPS,
    Retry,
    Stopped,
    UserError,
)
from workloads.launch.connection import Connection, Link, WrongSecretError, introduce
from workloads.launch.messages import Hello, Meeting, Outcome, StopRequest, Terms
from workloads.run.secret import FILE, VARIABLE


@dataclass
class Member:
    """The side of every node but node 0."""

    me: Hello
    address: str
    port: int
    outputs: Path
    terms: Terms
    secret: bytes
    _connection: Connection | None = None

    def meet(self, attempt: int) -> Meeting:
        """Connect to node 0 and wait for its start message; raises Retry where it does not come."""
        until = time.monotonic() + self.terms.node_timeout
        while True:
            connection = self._connected(until)
            if probe := connection.peek("probe"):
                connection.take("probe")
                connection.send("seen", seen=self._sees(probe["name"], probe["word"]))
            if start := connection.peek("start"):
                connection.take("start")
                return Meeting(
                    start["run_id"], start["attempt"], start["shared"], tuple(start["hosts"])
                )
            _heed_verdict(connection)
            if not self.terms.pause(until, 0.02):
                raise Retry(
                    f"node 0 ({self.address}:{self.port}) did not start the job within "
                    f"{self.terms.node_timeout:.0f} s; see its log for the node it waits for"
                )

    def _connected(self, until: float) -> Connection:
        if self._connection is not None:
            if not self._connection.lost(self.terms.peer_timeout):
                return self._connection
            # Node 0 may have ended the job while this node waited for its next attempt.
            _heed_verdict(self._connection)
        self.terms.report(f"looking for node 0 at {self.address}:{self.port}")
        while True:
            try:
                # Seconds; a firewall that drops packets would otherwise block for minutes.
                sock = socket.create_connection((self.address, self.port), timeout=5)
                link = Link(sock, self.terms.peer_timeout)
                introduce(link, self.secret, self.me)
                break
            except WrongSecretError:
                link.close()
                raise UserError(
                    f"{self.address}:{self.port} does not know the secret of this run as it is "
                    f"here; copy the file {FILE} from node 0's outputs folder into {self.outputs} "
                    f"here, or put one line {VARIABLE}=… into .env on every host"
                ) from None
            except (OSError, ValueError) as error:
                if not self.terms.pause(until, 0.3):
                    raise Retry(
                        f"node 0 did not answer at {self.address}:{self.port} within "
                        f"{self.terms.node_timeout:.0f} s ({error}); check MASTER_ADDR, "
                        "MASTER_PORT, that node 0 runs, and its firewall"
                    ) from None
        self._connection = Connection(link, self.terms.peer_timeout / 5)
        return self._connection

    def _sees(self, name: str, word: str) -> bool:
        try:
            return (self.outputs / name).read_text() == word
        except OSError:
            return False

    def trouble(self) -> str | None:
        lost = self._connection is None or self._connection.lost(self.terms.peer_timeout)
        if self._connection is not None and (verdict := self._connection.peek("verdict")):
            return f"node 0 ended the attempt: {verdict['reason']}"
        return f"lost node 0 ({self.address})" if lost else None

    def ask_stop(self, wish: StopRequest) -> None:
        """Send this node's stop request; node 0 knows those of all others."""
        # A request with a name came from node 0, which need not hear it again.
        if self._connection is not None and not wish.by:
            self._connection.send("stop", number=wish.number, by="")

    def stop_asked(self) -> StopRequest | None:
        stop = self._connection.peek("stop") if self._connection is not None else None
        return StopRequest(stop["number"], stop["by"]) if stop else None

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        """Report and wait for node 0's verdict; where node 0 is gone, connect again."""
        connection = self._connection
        if connection is None:
            return Outcome(EXIT_RETRY, "lost node 0", may_restart)
        connection.send("result", code=mine.code, reason=mine.reason)
        lost = False
        while not lost:
            lost = connection.lost(self.terms.peer_timeout)
            if verdict := connection.take("verdict"):
                return Outcome(verdict["code"], verdict["reason"], verdict["again"])
            time.sleep(0.05)
        # Without node 0 nobody decides: an outcome that no restart would change stands.
        if mine.code in (EXIT_USER, EXIT_FAILED, *STOPS):
            return mine
        return Outcome(EXIT_RETRY, f"lost node 0 ({self.address})", may_restart)

    def end(self, outcome: Outcome) -> None:
        """Tell node 0, which would wait, why this node ends outside of an attempt."""
        if self._connection is None:
            return
        if number := self.terms.stopping():
            self._connection.send("stop", number=number, by="")
        else:
            self._connection.send("result", code=outcome.code, reason=outcome.reason)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _heed_verdict(connection: Connection) -> None:
    """Raise the end of the job that node 0 has sent.

    A verdict on the attempt before sends `again` to a node that came back. Nothing is taken from
    the queue: a message that arrives just now would be lost with it.
    """
    verdict = connection.peek("verdict")
    if verdict is None or verdict["again"]:
        return
    text = f"node 0 ended the job: {verdict['reason']}"
    if verdict["code"] in STOPS:
        raise Stopped(text, verdict["code"])
    raise (UserError if verdict["code"] == EXIT_USER else Retry)(text)
