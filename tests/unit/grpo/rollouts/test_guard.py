"""O-A4: vLLM as a service takes weights from nobody but the trainer."""

import asyncio
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from trl.generation.vllm_client import VLLMClient

from workloads.grpo.rollouts import guard

pytestmark = pytest.mark.unit


def answer(scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a server with the token `right` sends."""
    monkeypatch.setenv(guard.VARIABLE, "right")
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send("let in")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard.RequireToken(app)(scope, None, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"right")],
        [(b"authorization", b"Bearer right"), (b"authorization", b"Bearer wrong")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/update_weights", "/health/../pause", "/"])
def test_a_stranger_is_refused_on_every_path(
    monkeypatch: pytest.MonkeyPatch, headers: list[tuple[bytes, bytes]], path: str
) -> None:
    sent = answer({"type": "http", "path": path, "headers": headers}, monkeypatch)
    assert sent[0]["status"] == 401
    sent = answer({"type": "websocket", "path": path, "headers": headers}, monkeypatch)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "http", "path": "/x", "headers": [(b"authorization", b"Bearer right")]},
        {"type": "http", "path": "/health", "headers": []},
        {"type": "lifespan"},
    ],
)
def test_the_trainer_and_a_health_check_are_let_in(
    monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any]
) -> None:
    assert answer(scope, monkeypatch) == ["let in"]


def test_both_sides_make_the_same_token_of_the_secret_of_the_runs(tmp_path: Path) -> None:
    env = {"TATARA_OUTPUTS": str(tmp_path)}
    assert guard.token(env) == guard.token(env)
    assert guard.token(env) != guard.token({"TATARA_RENDEZVOUS_SECRET": "x" * 32})


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.heard.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def test_the_library_s_client_sends_it() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    server.heard = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    client = VLLMClient.__new__(VLLMClient)  # without vLLM it makes none
    client.session = requests.Session()
    client.base_url = f"http://127.0.0.1:{server.server_port}"
    with guard.client_sends("right"):
        client.check_server()
    client._get(f"{client.base_url}/server_info")
    assert server.heard == [None, "Bearer right"]  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
