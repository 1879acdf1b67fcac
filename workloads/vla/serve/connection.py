"""Reads a request with one time limit for the whole request."""

import io
import socket
import time
from typing import Any


class DeadlineReader(io.RawIOBase):
    """Reads a connection until a deadline that `allow` sets; TimeoutError after it.

    A socket's own timeout restarts with every piece: a client that sends a byte now and then would
    block a thread forever.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic()

    def allow(self, seconds: float) -> None:
        """Set the deadline of the following reads, in seconds from now."""
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this request is over")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
