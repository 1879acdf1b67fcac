"""An HTTP server that many or slow clients cannot block.

One thread a connection, up to a limit. For one more, the connection that has waited longest for its
request to become complete is closed, so that a normal browser always gets in.
"""

import contextlib
import io
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST = 64  # connections at once
HEAD_SECONDS = 30.0  # seconds for a complete request, and for an idle connection
_SEND_SECONDS = 30.0  # seconds for a complete answer
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class BoundedServer(ThreadingHTTPServer):
    """A threading server with limits; its threads end with the process."""

    daemon_threads = True
    request_queue_size = 128  # connections that the system holds until they are accepted

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        self.open_connections = 0
        self.waiting: dict[socket.socket, None] = {}  # waiting for a request, the oldest first
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = next(iter(self.waiting), None) if self.open_connections >= MOST else None
            is_full = self.open_connections >= MOST and oldest is None
            if oldest is not None:
                del self.waiting[oldest]
                with contextlib.suppress(OSError):  # it is closed already
                    oldest.shutdown(socket.SHUT_RDWR)
            self.open_connections += 1
        if is_full:
            request.setblocking(False)
            _send_if_possible(request, _BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self.open_connections -= 1
            self.waiting.pop(request, None)
        super().shutdown_request(request)

    def note(self, request: socket.socket, waiting: bool) -> None:
        """Record whether a connection waits for a complete request, or is being answered."""
        with self._lock:
            self.waiting.pop(request, None)
            if waiting:
                self.waiting[request] = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that disconnect in the middle of an answer."""


def _send_if_possible(connection: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):  # it has disconnected, or reads nothing
        connection.send(content)


class _HeadReader(io.RawIOBase):
    """Reads a connection, with one deadline for a whole request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.begin()

    def begin(self) -> None:
        """Start the deadline of a new request."""
        self._until = time.monotonic() + HEAD_SECONDS
        self.received = 0
        self.is_late = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            count = self._connection.recv_into(buffer)
        except TimeoutError:
            self.is_late = True
            raise
        self.received += count
        return count


class BoundedHandler(BaseHTTPRequestHandler):
    """Reads a complete request within a time limit; answers GET and HEAD by `do_GET`."""

    protocol_version = "HTTP/1.1"
    server: BoundedServer

    def setup(self) -> None:
        super().setup()
        self._head = _HeadReader(self.connection)
        self.rfile = io.BufferedReader(self._head, 1 << 16)

    def handle_one_request(self) -> None:
        self.server.note(self.connection, waiting=True)
        self._head.begin()
        super().handle_one_request()
        if self._head.is_late and self._head.received:
            _send_if_possible(self.connection, b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    def parse_request(self) -> bool:
        is_whole = super().parse_request()
        self.server.note(self.connection, waiting=False)
        self.connection.settimeout(_SEND_SECONDS)
        if is_whole and ("Content-Length" in self.headers or "Transfer-Encoding" in self.headers):
            self.close_connection = True  # a body, which is not read
        return is_whole

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def answer(self, status: HTTPStatus, kind: str, text: str, headers: dict[str, str]) -> None:
        """Send a text; to HEAD only its headers."""
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "tatara"

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing: a line for every request would be of no use."""
