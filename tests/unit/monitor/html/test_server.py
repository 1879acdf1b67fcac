"""Many and slow clients: an honest browser gets in, and what it holds up is bounded."""

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus

import pytest

from workloads.monitor.html import server as served
from workloads.monitor.html.server import BoundedHandler, BoundedServer

pytestmark = pytest.mark.unit


class Hello(BoundedHandler):
    gate = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/wait":
            self.gate.wait(30)
        self.answer(HTTPStatus.OK, "text/plain", "hello\n", {})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BoundedServer]:
    monkeypatch.setattr(served, "MOST", 8)
    Hello.gate = threading.Event()
    found = BoundedServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    Hello.gate.set()
    found.shutdown()
    found.server_close()
    thread.join()


def connected(server: BoundedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=20)


def ask(server: BoundedServer, path: str = "/", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_o_d5_head_has_what_get_has_but_the_text(server: BoundedServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    found = []
    for method in ("HEAD", "GET"):
        connection.request(method, "/")
        answer = connection.getresponse()
        found.append((answer.status, answer.getheader("Content-Length"), answer.read()))
    assert found == [(200, "6", b""), (200, "6", b"hello\n")]


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_v_s1_slow_senders_keep_nobody_out(server: BoundedServer, sent: bytes) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(40)]
        for connection in slow:
            with suppress(OSError):  # it was closed for a newer one
                connection.sendall(sent)
        for _ in range(5):
            assert ask(server) == (200, b"hello\n")


def test_v_s1_a_request_that_drips_has_a_limit_for_the_whole(
    server: BoundedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "HEAD_SECONDS", 0.5)
    began = time.monotonic()
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        found = b""
        connection.settimeout(0.05)  # a byte comes more often than any limit for one reading
        while not found and time.monotonic() < began + 20:
            try:
                connection.sendall(b"X")
                found = connection.recv(100)
            except TimeoutError:
                continue
            except OSError:
                break
    assert found.startswith(b"HTTP/1.1 408") or found == b""
    assert time.monotonic() - began < 10


def test_v_s1_what_is_being_answered_is_not_closed_for_others(server: BoundedServer) -> None:
    found: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(server, "/wait"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while server.waiting or server.open_connections < 8:
        assert time.monotonic() < until
        time.sleep(0.01)
    with connected(server) as one_more:
        text = one_more.recv(1000)
    assert text.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in text
    Hello.gate.set()
    for thread in threads:
        thread.join()
    assert found == [(200, b"hello\n")] * 8


def test_v_s2_the_system_holds_a_burst_until_it_is_accepted() -> None:
    with BoundedServer(("127.0.0.1", 0), Hello) as server, ExitStack() as stack:
        for _ in range(40):  # nobody accepts
            address = ("127.0.0.1", server.server_port)
            stack.enter_context(socket.create_connection(address, timeout=20))


def test_v_s2_every_request_of_a_burst_is_answered(
    server: BoundedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that the client has closed counts until the server has noticed.
    monkeypatch.setattr(served, "MOST", 24)
    found: list[int] = []

    def several() -> None:
        for _ in range(4):
            found.append(ask(server)[0])

    threads = [threading.Thread(target=several) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 24


def test_a_body_is_not_taken_for_a_request(server: BoundedServer) -> None:
    with connected(server) as connection:
        inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
        connection.sendall(head + inner)
        text = b""
        while part := connection.recv(1000):
            text += part
    assert len(re.findall(b"HTTP/1.1 200", text)) == 1
