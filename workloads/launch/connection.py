"""One connection between two nodes that have proved that they know the same secret.

    member                                      node 0
      | <- challenge: nonce A                      |   at once, to whoever connects
      | -> hello: who I am, nonce B; proof         |   HMAC(secret, "member", A, B, the hello)
      | <- welcome: proof                          |   HMAC(secret, "node 0", A, B)
      |    or stranger, and the connection ends    |   where the member's proof is wrong
      | <-> any message, a beat when it is quiet   |   HMAC(key, side, number of the line, the line)

A recorded line is of no use to a stranger: the nonces are new for each connection, the key is made
of them, and both sides count the lines. Whoever sends anything else is cut off.
"""

import contextlib
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from workloads.launch.messages import MOST_BYTES, Hello, line_of, parsed

MEMBER, NODE_0 = b"member", b"node 0"
_OTHER = {MEMBER: NODE_0, NODE_0: MEMBER}


class WrongSecretError(ConnectionError):
    """The other side does not know the secret of this run."""


def _proof(key: bytes, *parts: bytes) -> bytes:
    """HMAC as hexadecimal digits; only the last part may contain the separator."""
    return hmac.new(key, b"|".join(parts), "sha256").hexdigest().encode()


class Link:
    """Lines over a socket, signed once there is a key; none longer than MOST_BYTES is read."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        sock.settimeout(timeout)  # seconds for one read or write
        self._socket, self._unread = sock, bytearray()
        self._key, self._side = b"", b""
        self._sent = self._received = 0

    def sign(self, key: bytes, side: bytes) -> None:
        self._key, self._side = key, side

    def write(self, line: bytes) -> None:
        # The number is part of the MAC: no line can be repeated, left out or moved. So is the side:
        # none can be sent back to its sender.
        if self._key:
            self._sent += 1
            line = self._mac(self._side, self._sent, line) + b" " + line
        self._socket.sendall(line + b"\n")

    def read(self) -> bytes:
        """The next line; ConnectionError where the other side is gone, or breaks the rules."""
        while (end := self._unread.find(b"\n")) < 0:
            # Before anything is parsed: a stranger must not fill the memory.
            if len(self._unread) > MOST_BYTES:
                raise ConnectionError("a line is too long")
            piece = self._socket.recv(8192)
            if not piece:
                raise ConnectionError("closed")
            self._unread += piece
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        if not self._key:
            return line
        self._received += 1
        mac, _, line = line.partition(b" ")
        if not hmac.compare_digest(mac, self._mac(_OTHER[self._side], self._received, line)):
            raise ConnectionError("a line is not signed as it should be")
        return line

    def _mac(self, side: bytes, number: int, line: bytes) -> bytes:
        return _proof(self._key, side, str(number).encode(), line)

    def shut(self) -> None:
        """End the connection; what has come already can still be read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut()
        self._socket.close()


def welcome(link: Link, secret: bytes) -> Hello:
    """Node 0's side of the handshake; returns the member's hello.

    Raises WrongSecretError, ConnectionError or ValueError for a stranger, OSError for silence.
    """
    # New nonces of both sides for each connection: a recorded proof is of no use for another one.
    mine = secrets.token_hex(16).encode()
    link.write(line_of("challenge", {"nonce": mine.decode()}))
    proof, _, line = link.read().partition(b" ")
    hello = parsed(line)
    if hello["type"] != "hello":
        raise ConnectionError("no hello")
    nonces = (mine, hello["nonce"].encode())
    if not hmac.compare_digest(proof, _proof(secret, MEMBER, *nonces, line)):
        link.write(line_of("stranger", {}))
        raise WrongSecretError("a wrong proof")
    link.write(line_of("welcome", {"proof": _proof(secret, NODE_0, *nonces).decode()}))
    link.sign(_proof(secret, b"key", *nonces), NODE_0)
    return Hello(hello["node"], hello["host"], hello["ranks"], hello["config"])


def introduce(link: Link, secret: bytes, me: Hello) -> None:
    """A member's side of the handshake: prove the secret and check node 0's proof.

    Raises WrongSecretError where a proof is wrong, ConnectionError or ValueError for a stranger,
    OSError for silence.
    """
    challenge = parsed(link.read())
    if challenge["type"] != "challenge":
        raise ConnectionError("no challenge")
    mine = secrets.token_hex(16)
    nonces = (challenge["nonce"].encode(), mine.encode())
    line = line_of("hello", {**asdict(me), "nonce": mine})
    link.write(_proof(secret, MEMBER, *nonces, line) + b" " + line)
    given = str(parsed(link.read()).get("proof")).encode()
    # Node 0 proves itself, too: otherwise a stranger at its address could stop or start nodes.
    if not hmac.compare_digest(given, _proof(secret, NODE_0, *nonces)):
        raise WrongSecretError("a wrong proof")
    link.sign(_proof(secret, b"key", *nonces), MEMBER)


class Connection:
    """Receives messages on a thread, sends them under a lock, and sends a beat when idle."""

    def __init__(self, link: Link, beat: float) -> None:
        self.heard = time.monotonic()
        self.open = True
        self._link, self._beat = link, beat
        self._inbox: list[dict[str, Any]] = []
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._start(self._read)
        self._start(self._keep_alive)

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        # An invalid message ends the connection, as silence does; the other side may reconnect.
        # To the end of the stream, also where sending has failed: a last verdict may be in it.
        with contextlib.suppress(OSError, ValueError):
            while True:
                message = parsed(self._link.read())
                self.heard = time.monotonic()
                with self._reading:
                    if message["type"] != "beat":
                        self._inbox.append(message)
        self.open = False
        self._link.close()

    def _keep_alive(self) -> None:
        # A fifth of peer_timeout apart: four beats may be late or lost before the peer gives up.
        while self.open:
            self.send("beat")
            time.sleep(self._beat)

    def send(self, kind: str, **facts: Any) -> None:
        try:
            with self._writing:
                self._link.write(line_of(kind, facts))
        except OSError:
            self._link.shut()  # `_read` has the last word, and what came before the end

    def lost(self, silence: float) -> bool:
        """Whether nothing more will come.

        To be asked before `take` and `peek`: what came before the end is in the inbox by then.
        """
        return not self.open or time.monotonic() - self.heard > silence

    def take(self, kind: str) -> dict[str, Any] | None:
        """The next message of a kind; older ones of other kinds are dropped, except a stop."""
        with self._reading:
            for index, message in enumerate(self._inbox):
                if message["type"] == kind:
                    # A stop is sent once: dropped here, this node would never learn of it.
                    stops = [older for older in self._inbox[:index] if older["type"] == "stop"]
                    self._inbox = [*stops, *self._inbox[index + 1 :]]
                    return message
        return None

    def peek(self, kind: str) -> dict[str, Any] | None:
        """The oldest waiting message of a kind, left where it is."""
        with self._reading:
            return next((message for message in self._inbox if message["type"] == kind), None)

    def close(self) -> None:
        self.open = False
        self._link.close()
