"""The policy's service over HTTP: `POST /act` for actions, `POST /reset` to end an episode,
`GET /health` for its status.

Bound to this machine alone unless there is a token. A page on the internet can make a browser here
ask 127.0.0.1: without a token, requests that a browser sends for a page are refused.
"""

import io
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from workloads.errors import EXIT_DONE, UserError
from workloads.host.ports import check_exposed, unusable
from workloads.signals import Stop, handled_by, interrupt
from workloads.vla.serve import messages
from workloads.vla.serve.connection import DeadlineReader
from workloads.vla.serve.refusal import Refused
from workloads.vla.serve.service import PolicyService

MOST_BYTES = 32 << 20
_LIMIT = f"expected a body of at most {MOST_BYTES >> 20} MiB"
# Seconds for a whole body, for a whole head, and between the requests of a kept connection. An
# image that takes longer to arrive no longer shows where the robot is.
_BODY_SECONDS, _HEAD_SECONDS, _IDLE_SECONDS = 20.0, 10.0, 30.0
_CHUNK = 1 << 16
_MOST_CONNECTIONS = 256
_BACKLOG = 128
_LINGER = 5.0  # seconds for which a refused client may continue to send
_LAST_ANSWERS = 20.0  # seconds that a stop waits for the model


_BUSY = json.dumps({"error": f"{_MOST_CONNECTIONS} connections are open already; ask again"})
_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(_BUSY)}\r\n\r\n{_BUSY}"
).encode()


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    reader: DeadlineReader
    buffered: io.BufferedReader
    # Otherwise a persistent connection waits for the other side between header and body.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.reader = DeadlineReader(self.connection)
        self.rfile = self.buffered = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        """The library's method, with a limit for the whole head instead of each line."""
        self.reader.allow(_IDLE_SECONDS)
        try:
            is_over = not self.buffered.peek(1)
        except OSError:
            is_over = True
        if is_over:
            self.close_connection = True
            return
        self.reader.allow(_HEAD_SECONDS)
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer({"/health": self._health})

    def do_POST(self) -> None:
        self._answer({"/act": self._act, "/reset": self._reset})

    def _answer(self, routes: dict[str, Callable[[], None]]) -> None:
        self._began = time.monotonic()
        self._unread = self.headers.get("Content-Length", "0") != "0"
        self._unread |= "Transfer-Encoding" in self.headers
        try:
            self._routed(routes)()
        except (TimeoutError, ConnectionError):
            # The client has disconnected.
            self.close_connection = True
        except Refused as refusal:
            self._refuse(refusal.status, str(refusal))
        except messages.UnknownKind as error:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error))
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception:
            traceback.print_exc()
            text = "the model failed on this request; the server's log says why"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, text)

    @property
    def _route(self) -> str:
        """The request's path without a query."""
        try:
            return urlsplit(self.path).path
        except ValueError:  # no address at all, as "http://["
            return self.path

    def _routed(self, routes: dict[str, Callable[[], None]]) -> Callable[[], None]:
        path = self._route
        if path not in ("/act", "/reset", "/health"):
            raise Refused(HTTPStatus.NOT_FOUND, "expected POST /act, POST /reset or GET /health")
        if path not in routes:
            method = "GET" if path == "/health" else "POST"
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {method} for {path}")
        if self.server.service.token is None and self.headers.get("Origin"):
            text = "pages of a browser are refused; start the server with a token for them"
            raise Refused(HTTPStatus.FORBIDDEN, text)
        return routes[path]

    def _health(self) -> None:
        found = self.server.service.health()
        if not self.server.service.may(self.headers.get("Authorization")):
            found = {"status": found["status"]}
        self._send(HTTPStatus.OK, json.dumps(found, ensure_ascii=False))

    def _check_token(self) -> None:
        if not self.server.service.may(self.headers.get("Authorization")):
            text = "expected Authorization: Bearer with the server's token"
            raise Refused(HTTPStatus.UNAUTHORIZED, text)

    def _reset(self) -> None:
        self._check_token()
        with self._body() as body:
            name = messages.ended(self.headers.get("Content-Type", ""), body)
            frames = self.server.service.end(name)
            self._send(HTTPStatus.OK, json.dumps({"episode": name, "frames": frames}))

    def _act(self) -> None:
        self._check_token()
        service = self.server.service
        # A slow sender must not take the turn of complete requests.
        with self._body() as body, service.turn():
            kind = self.headers.get("Content-Type", "")
            question = messages.read(
                kind, body, service.policy.cameras, service.policy.state_size is not None
            )
            ignored = ", ".join(name for name in question.ignored if _is_plain(name))
            headers = {"X-Ignored": ignored} if ignored else {}
            text, frame = service.act(question)
            if frame is not None:
                headers["X-Episode-Frame"] = str(frame)
            elif service.policy.remembers:
                headers["X-Episode-Frame"] = "none"
                service.warn_once()
            self._send(HTTPStatus.OK, text, headers)

    @contextmanager
    def _body(self) -> Iterator[bytes]:
        """The request's body, counted in the server's memory limit."""
        lengths = {*self.headers.get_all("Content-Length", ())}
        length = lengths.pop() if len(lengths) == 1 else ""
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,12}", length):
            text = "expected one Content-Length; chunked bodies are not taken"
            raise Refused(HTTPStatus.LENGTH_REQUIRED, text)
        if int(length) > MOST_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{_LIMIT}, found {int(length):,} bytes"
            )
        self.reader.allow(_BODY_SECONDS)
        with self.server.service.memory() as held:
            body = bytearray()
            while len(body) < int(length):
                try:
                    piece = self.rfile.read1(min(_CHUNK, int(length) - len(body)))
                except TimeoutError:
                    text = f"expected {length} bytes in {_BODY_SECONDS:.0f} s, found {len(body)}"
                    raise Refused(HTTPStatus.REQUEST_TIMEOUT, text) from None
                if not piece:
                    text = f"expected {length} bytes, found {len(body)}"
                    raise Refused(HTTPStatus.BAD_REQUEST, text)
                held.add(len(piece))
                body += piece
            self._unread = False
            yield bytes(body)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        print(f"tatara: {self.command} {self.path[:80]!r}: {text}", file=sys.stderr, flush=True)
        headers = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        if status == HTTPStatus.UNAUTHORIZED:
            headers = {"WWW-Authenticate": "Bearer"}
        try:
            self._send(status, json.dumps({"error": text}, ensure_ascii=False), headers)
            self._linger()
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def _linger(self) -> None:
        """Let the client finish sending, otherwise it would never read the refusal."""
        if not self._unread:
            return
        self.connection.shutdown(socket.SHUT_WR)
        self.reader.allow(_LINGER)
        while self.rfile.read1(_CHUNK):
            pass

    def _send(
        self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.connection.settimeout(_IDLE_SECONDS)
        # An unread body would be parsed as the next request.
        self.close_connection = self.close_connection or self._unread
        content = text.encode("utf-8", "replace")
        seconds = time.monotonic() - self._began
        if self._route == "/act":
            self.server.service.note(seconds, status == HTTPStatus.OK)
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Latency-Ms", f"{1000 * seconds:.2f}")
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        return "tatara"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for answered frames; refusals have a line of their own."""


def _is_plain(name: str) -> bool:
    """Whether a client's text may be sent in a header."""
    return name.isascii() and name.isidentifier() and len(name) < 50


class Server(ThreadingHTTPServer):
    """A threading server: threads end with the process; a hanging client does not delay others."""

    daemon_threads = True
    # The library's default of 5 refuses simultaneous clients.
    request_queue_size = _BACKLOG
    service: PolicyService

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), Handler, bind_and_activate=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection, or answer that there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(0.1)
            request.sendall(_FULL)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        # The library's method looks up this machine's name, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect in the middle."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def claim(host: str, port: int, token: str | None) -> Server:
    """Bind the port, without answering yet; raises UserError where that is impossible or unsafe."""
    check_exposed(host, token)
    server = Server(host, port)
    try:
        server.server_bind()
    except (OSError, OverflowError) as error:
        server.server_close()
        raise unusable(host, port, error) from None
    return server


def serve(server: Server, service: PolicyService) -> int:
    """Serve until SIGTERM or Ctrl-C; running answers are completed."""
    server.service = service
    server.server_activate()

    stop = Stop(at_once=interrupt)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.on_signal(number, frame)
        if not service.stopping:
            service.stopping = True
            # shutdown() waits for the loop that this handler interrupts.
            threading.Thread(target=server.shutdown, daemon=True).start()

    name = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    try:
        with handled_by(on_signal):
            print(f"http://{name}:{server.server_port}/act   (Ctrl-C ends it)", flush=True)
            server.serve_forever(poll_interval=0.1)
            service.drain(_LAST_ANSWERS)
    finally:
        server.server_close()
    print(f"stopped after {service.served:,} actions", flush=True)
    return EXIT_DONE
