"""A served policy over real HTTP on the loopback: answers, refusals, tokens, many at once."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_policy import policy_folder, statistics
from tests.support.waiting import until
from workloads.cli import main
from workloads.errors import UserError
from workloads.vla.openvla.config import OftSpec
from workloads.vla.policy import Observation, Policy
from workloads.vla.serve import client as clients
from workloads.vla.serve import server as serve
from workloads.vla.serve.client import PolicyClient, ServerError, decode, dumps
from workloads.vla.serve.server import Server, claim
from workloads.vla.serve.service import PolicyService

pytestmark = pytest.mark.unit
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
STATE = np.linspace(-0.5, 0.5, 8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Chunks of 4, two cameras, a state, statistics of two datasets."""
    oft = OftSpec(action_dim=8, action_chunk=4, proprio_dim=8)
    folder = tmp_path_factory.mktemp("policy") / "oft"
    table = statistics(("crane_x7", "other"))
    policy_folder(folder, table, oft=oft, cameras=("primary", "wrist"))
    return Policy.from_pretrained(folder, device="cpu", report=lambda text: None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Action tokens, one camera, one dataset."""
    folder = policy_folder(tmp_path_factory.mktemp("policy") / "tokens")
    return Policy.from_pretrained(folder, device="cpu", report=lambda text: None)


class Served:
    """A server in a thread of its own."""

    def __init__(self, policy: Policy, token: str | None = None) -> None:
        self.server: Server = claim("127.0.0.1", 0, token)
        self.service = self.server.service = PolicyService(policy, token)
        self.server.server_activate()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/act"

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        """One request as any program makes it: status, JSON, and the response for its headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        found = json.loads(response.read())
        connection.close()
        return response.status, found, response

    def post(self, payload: dict[str, Any], **headers: str) -> tuple[int, Any]:
        kind = {"Content_Type": "application/json", **headers}
        return self.ask("POST", "/act", dumps(payload).encode(), **kind)[:2]


@pytest.fixture
def served(policy: Policy) -> Iterator[Served]:
    one = Served(policy)
    yield one
    one.end()


def payload(**changes: Any) -> dict[str, Any]:
    pictures = {"full_image": PICTURE, "wrist_image": PICTURE[::-1]}
    return {**pictures, "instruction": "take it", "state": STATE, "unnorm_key": "other"} | changes


def expected(policy: Policy) -> np.ndarray:
    images = {"primary": PICTURE, "wrist": PICTURE[::-1]}
    return policy.act([Observation(images, "take it", STATE)], "other")[0]


@pytest.mark.parametrize("send", ["png", "json-numpy"])
def test_the_client_gets_the_policys_own_actions(served: Served, policy: Policy, send: str) -> None:
    client = PolicyClient(served.url, send=send)
    images = {"full_image": PICTURE, "wrist": PICTURE[::-1]}
    for _ in range(2):
        actions = client.act("take it", images, STATE, "other")
        assert actions.shape == (4, 8) and np.array_equal(actions, expected(policy))
    assert client.latency is not None and 0 < client.latency < 20
    health = client.health()
    assert health["served"] == 2 and health["refused"] == 0 and health["status"] == "ok"
    assert health["unnorm_keys"] == ["crane_x7", "other"]
    assert health["cameras"] == ["primary", "wrist"]
    assert (health["state_size"], health["action_shape"]) == (8, [4, 8])
    assert 0 < health["latency_ms"]["p50"] <= health["latency_ms"]["p95"]
    client.close()


def test_jpeg_comes_near(served: Served, policy: Policy) -> None:
    smooth = np.full((48, 64, 3), (200, 90, 30), np.uint8)
    images = {"primary": smooth, "wrist": smooth}
    found = PolicyClient(served.url).act("take it", images, STATE, "other")
    exact = policy.act([Observation(images, "take it", STATE)], "other")[0]
    assert np.abs(found - exact).max() < 0.05


def test_one_image_and_no_key_where_there_is_one(plain: Policy) -> None:
    served = Served(plain)
    try:
        action = PolicyClient(served.url, send="png").act("take it", PICTURE)
        status, found = served.post({"image": PICTURE, "instruction": "take it"})
        inner = dumps({"image": PICTURE, "instruction": "take it"})
        doubly = served.post({"encoded": inner})[1]
    finally:
        served.end()
    assert action.shape == (8,) and status == 200
    assert np.array_equal(decode(found), action)
    assert np.array_equal(decode(json.loads(doubly)), action)
    exact = plain.act([Observation({"primary": PICTURE}, "take it")])[0, 0]
    assert np.array_equal(action, exact)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unnorm_key": "bridge"}, "found 'bridge'; known: crane_x7, other"),
        ({"unnorm_key": None}, "choose one of: crane_x7, other"),
        ({"wrist_image": None}, "found none of wrist"),
        ({"instruction": ""}, "expected an instruction, found none"),
        ({"state": None}, "expected a state of 8 numbers"),
        ({"state": [1.0, 2.0]}, "found shape [2]"),
        ({"full_image": PICTURE.astype(np.float32)}, "full_image: expected uint8"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    served: Served, changes: dict[str, Any], sentence: str
) -> None:
    status, found = served.post(payload(**changes))
    assert status == 400 and sentence in found["error"]
    with pytest.raises(ServerError, match="found none of primary"):
        PolicyClient(served.url).act("go", {"left": PICTURE}, STATE, "other")
    assert served.service.health()["refused"] == 2


def test_what_is_not_served(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.ask("GET", "/")[0] == 404
    assert served.ask("GET", "/act")[0] == 405
    assert served.ask("POST", "/health", b"{}")[0] == 405
    assert served.ask("POST", "/act", b"hi", Content_Type="text/plain")[0] == 415
    status, found, _ = served.ask("POST", "/act", None, Content_Length="x")
    assert status == 411 and "Content-Length" in found["error"]
    chunked = {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}
    assert served.ask("POST", "/act", b"2\r\n{}\r\n0\r\n\r\n", **chunked)[0] == 411
    monkeypatch.setattr(serve, "MOST_BYTES", 1000)
    status, found, response = served.ask("POST", "/act", bytes(3_000_000))
    assert status == 413 and "found 3,000,000 bytes" in found["error"]
    assert float(response.headers["X-Latency-Ms"]) >= 0
    assert response.headers["Connection"] == "close"


def test_a_page_in_a_browser_may_not_ask(served: Served) -> None:
    assert served.post(payload(), Origin="http://example.org")[0] == 403
    assert served.post(payload())[0] == 200


def test_fields_that_nobody_looks_at_are_named(served: Served) -> None:
    body = dumps(payload(timestep=3, **{"no\nheader": 1})).encode()
    kind = {"Content_Type": "application/json; charset=utf-8"}
    status, _, response = served.ask("POST", "/act", body, **kind)
    assert (status, response.headers["X-Ignored"]) == (200, "timestep")


def test_a_token_is_asked_for(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "canary-77-試"
    sent = token.encode().decode("latin-1")  # as http.client takes a header
    served = Served(policy, token=token)
    try:
        assert served.post(payload())[0] == 401
        assert served.post(payload(), Authorization="Bearer canary-7")[0] == 401
        assert served.post(payload(), Authorization=f"Basic {sent}")[0] == 401
        assert served.post(payload(), Authorization=f"Bearer {sent}")[0] == 200
        assert served.ask("GET", "/health")[1] == {"status": "ok"}
        images = {"primary": PICTURE, "wrist": PICTURE}
        monkeypatch.setenv(clients.TOKEN, token)
        client = PolicyClient(served.url)
        assert client.act("go", images, STATE, "other").shape == (4, 8)
        assert client.health()["model"].endswith("oft")
    finally:
        served.end()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "robot.example", "192.168.0.5"])
def test_other_machines_only_with_a_token(host: str) -> None:
    with pytest.raises(UserError, match="set TATARA_SERVE_TOKEN"):
        claim(host, 0, None)


def test_a_port_that_is_taken_is_named(served: Served) -> None:
    with pytest.raises(UserError, match=f"127.0.0.1:{served.server.server_port} cannot be used"):
        claim("127.0.0.1", served.server.server_port, None)
    with pytest.raises(UserError, match="cannot be used"):
        claim("127.0.0.1", 70_000, None)


def test_one_model_call_at_a_time_and_few_who_wait(
    served: Served, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = 0, 0
    full, go_on = threading.Event(), threading.Event()
    answer = expected(policy)

    def slow(observations: list[Observation], key: str) -> np.ndarray:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        full.set()
        assert go_on.wait(20)
        inside -= 1
        return answer[None]

    monkeypatch.setattr(policy, "act", slow)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(served.post, payload()) for _ in range(8)]
        assert full.wait(20)
        while served.service._waiting < 8:
            threading.Event().wait(0.005)
        status, found = served.post(payload())
        assert status == 503 and "8 requests are waiting" in found["error"]
        go_on.set()
        assert [answer.result()[0] for answer in asked] == [200] * 8
    assert most == 1


def test_a_stop_lets_the_last_answer_out(
    served: Served, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on, drained = threading.Event(), threading.Event(), threading.Event()
    answer = expected(policy)

    def slow(observations: list[Observation], key: str) -> np.ndarray:
        inside.set()
        assert go_on.wait(20)
        return answer[None]

    monkeypatch.setattr(policy, "act", slow)
    with ThreadPoolExecutor(2) as pool:
        last = pool.submit(served.post, payload())
        assert inside.wait(20)
        served.service.stopping = True
        pool.submit(lambda: (served.service.drain(20), drained.set()))
        status, found = served.post(payload())
        assert status == 503 and "stopping" in found["error"] and not drained.is_set()
        go_on.set()
        assert last.result()[0] == 200 and drained.wait(20)


def test_a_model_that_fails_is_no_news_to_the_next(
    served: Served, policy: Policy, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(policy, "act", lambda *_: 1 / 0)
        status, found = served.post(payload())
        assert status == 500 and "log says why" in found["error"]
        assert "ZeroDivisionError" in capsys.readouterr().err
        patch.setattr(policy, "act", lambda *_: np.full((1, 4, 8), np.nan))
        assert served.post(payload())[0] == 500
    assert served.post(payload())[0] == 200


def test_a_client_that_goes_away_holds_nobody_up(served: Served, capsys: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as gone:
        gone.sendall(b"POST /act HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
    assert served.post(payload())[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_kept_connection_that_was_closed_is_made_anew(policy: Policy) -> None:
    first = Served(policy)
    client = PolicyClient(first.url, send="png")
    images = {"primary": PICTURE, "wrist": PICTURE}
    client.act("go", images, STATE, "other")
    assert client._connection.sock is not None
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.act("go", images, STATE, "other").shape == (4, 8)
    first.end()
    with pytest.raises(OSError):
        PolicyClient(first.url).act("go", images, STATE, "other")


def test_a_client_goes_on_after_an_answer_that_came_too_late() -> None:
    """V-W5's kind: http.client alone refuses every request after one that timed out."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[1.0, 2.0]"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = PolicyClient(f"http://127.0.0.1:{listener.getsockname()[1]}/act", timeout=0.2)
        for sent in (b"", answer[:20], answer[:-3]):  # nothing, half a head, half a body
            connections = []

            def part(sent: bytes = sent, connections: list[Any] = connections) -> None:
                connections.append(listener.accept()[0])
                connections[0].sendall(sent)

            thread = threading.Thread(target=part)
            thread.start()
            with pytest.raises(TimeoutError):
                client.act("go", PICTURE)
            thread.join()
            connections[0].close()

        def whole() -> None:
            connection = listener.accept()[0]
            asked = b""
            while not asked.endswith(b"--\r\n"):  # the end of its last part
                asked += connection.recv(1 << 16)
            connection.sendall(answer)
            connection.close()

        client._connection.timeout = 60
        thread = threading.Thread(target=whole)
        thread.start()
        assert client.act("go", PICTURE).tolist() == [1.0, 2.0]
        thread.join()
        client.close()


def test_an_address_that_is_none_gets_an_answer(served: Served, capsys: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as odd:
        odd.sendall(b"POST http://[ HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert odd.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("head", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_a_body_whose_end_is_said_twice_is_refused(served: Served, head: bytes) -> None:
    """What stands between client and server may see another end, and so another next request."""
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as odd:
        odd.sendall(b"POST /act HTTP/1.1\r\nContent-Length: 2\r\n" + head + b"\r\n\r\n{}")
        assert odd.recv(1 << 16).startswith(b"HTTP/1.1 411 ")


def test_no_policy_is_served_without_statistics(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "model")
    (folder / "dataset_statistics.json").write_text("{}")
    policy = Policy.from_pretrained(folder, device="cpu", report=lambda text: None)
    with pytest.raises(UserError, match="expected statistics to give actions their units"):
        PolicyService(policy).warm_up()


def test_a_blank_token_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TATARA_SERVE_TOKEN", " \n")
    assert main(["serve", "latest", "--host", "0.0.0.0"]) == 2
    assert "expected a token" in capsys.readouterr().err


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "latest", "--host", "0.0.0.0"]) == 2
    assert "expected a token" in capsys.readouterr().err
    assert main(["serve", "data/demo/tiny-llama", "--workload", "vla", "--port", "0"]) == 2
    assert "expected model_type of openvla, robovlms, found 'llama'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a URL"):
        PolicyClient("127.0.0.1:8000")
    assert clients.main(["--image", "none.jpg", "--instruction", "go"]) == 2
    assert "no action: " in capsys.readouterr().err


HEAD = (
    b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 200000\r\n\r\n{"
)


def dripping(served: Served, count: int = 8) -> list[socket.socket]:
    """Clients that announce a body and send hardly any of it."""
    address = ("127.0.0.1", served.server.server_port)
    clients = [socket.create_connection(address, timeout=20) for _ in range(count)]
    for client in clients:
        client.sendall(HEAD)
    return clients


def test_slow_senders_shut_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """V-S1: a body has a limit for the whole of it, however steadily it drips."""
    monkeypatch.setattr(serve, "_BODY_SECONDS", 1.5)
    began = time.monotonic()
    clients = dripping(served)
    for _ in range(4):
        assert served.post(payload())[0] == 200
        for client in clients:
            client.sendall(b" ")
    for client in clients:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 408
        assert b"expected 200000 bytes in 2 s, found" in answer.read()
        client.close()
    assert time.monotonic() - began >= 1.5
    assert served.post(payload())[0] == 200


def test_a_head_that_drips_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """V-S1: head lines too."""
    monkeypatch.setattr(serve, "_HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", served.server.server_port), timeout=20) as client:
        client.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionResetError):  # it was dropped before all had come
            assert client.recv(100) == b""


def test_bodies_hold_no_more_memory_than_there_is(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V-S1: what all requests hold together is bounded, and given back."""
    from workloads.vla.serve import service

    monkeypatch.setattr(service, "_MOST_HELD", 1000)
    status, found = served.post(payload())
    assert status == 503 and "too much is being sent at once" in found["error"]
    monkeypatch.setattr(service, "_MOST_HELD", 1 << 20)
    assert served.post(payload())[0] == 200
    until(lambda: served.service._held == 0)  # given back once the answer is on its way


def test_too_many_connections_are_told(served: Served) -> None:
    """V-S1: each connection is a thread, so they are counted."""
    served.server._free = threading.BoundedSemaphore(1)
    (client,) = dripping(served, 1)
    status, found, response = served.ask("GET", "/health")
    assert status == 503 and response.getheader("Retry-After") == "1"
    assert "connections are open already" in found["error"]
    client.close()


def test_forty_connect_while_nobody_accepts() -> None:
    """V-S2: the backlog."""
    server = claim("127.0.0.1", 0, None)
    server.server_activate()
    address = ("127.0.0.1", server.server_port)
    clients = [socket.create_connection(address, 5) for _ in range(40)]
    assert len(clients) == 40
    for client in clients:
        client.close()
    server.server_close()


def test_a_burst_gets_an_answer_each_and_the_model_one_at_a_time(
    served: Served, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V-S2: 200, or 503 with Retry-After; never a reset, never two in the model."""
    inside, most, own = 0, 0, policy.act
    counting = threading.Lock()

    def counted(*args: Any) -> np.ndarray:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        try:
            return own(*args)
        finally:
            with counting:
                inside -= 1

    monkeypatch.setattr(policy, "act", counted)
    body = dumps(payload()).encode()

    def ask(_: int) -> tuple[int, str | None]:
        status, _, answer = served.ask("POST", "/act", body, Content_Type="application/json")
        return status, answer.getheader("Retry-After")

    with ThreadPoolExecutor(40) as pool:
        answers = Counter(pool.map(ask, range(80)))
    assert set(answers) <= {(200, None), (503, "1")} and answers[200, None] >= 1
    assert most == 1


@pytest.mark.parametrize(
    ("image", "found"),
    [(PICTURE[:4, :4].tolist(), "found a list"), ("aGVsbG8=", "found a text")],
)
def test_images_in_other_forms_get_a_hint(served: Served, image: Any, found: str) -> None:
    """V-S7."""
    status, answer = served.post(payload(full_image=image))
    assert status == 400
    assert found in answer["error"] and "json_numpy.patch()" in answer["error"]


def test_a_state_that_nobody_looks_at_is_named(plain: Policy) -> None:
    """V-S8."""
    served = Served(plain)
    try:
        fields = {"image": PICTURE, "instruction": "take it", "state": [0.0] * 6}
        _, _, answer = served.ask(
            "POST", "/act", dumps(fields).encode(), Content_Type="application/json"
        )
    finally:
        served.end()
    assert answer.status == 200 and answer.getheader("X-Ignored") == "state"
