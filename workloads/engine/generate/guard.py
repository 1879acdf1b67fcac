"""Access to a text server: an ASGI middleware, for our own server and for vLLM's.

vLLM's own --api-key covers /v1 alone. A page on the internet can make a browser here ask 127.0.0.1:
without a token, requests that a browser sends for a page are refused.
"""

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

TOKEN = "TATARA_SERVE_TOKEN"
_OPEN = "/health"  # asked by compose and a trainer while the server starts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """401 for a request without the token, or 403 for a browser's page where there is none."""

    def __init__(self, app: App, token: str | None) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == _OPEN:
            return await self._app(scope, receive, send)
        if self._wanted is None:
            if not _header(scope, b"origin"):
                return await self._app(scope, receive, send)
            text = "pages of a browser are refused; start the server with a token for them"
            return await _refuse(scope, send, 403, text)
        given = _header(scope, b"authorization")
        if len(given) == 1 and hmac.compare_digest(given[0], self._wanted):
            return await self._app(scope, receive, send)
        text = "expected Authorization: Bearer with the server's token"
        await _refuse(scope, send, 401, text)


class ServeGuard(Guard):
    """The guard of `tatara serve`, whose token is in the environment."""

    def __init__(self, app: App) -> None:
        super().__init__(app, os.environ.get(TOKEN, "").strip() or None)


def _header(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = json.dumps({"error": {"message": text, "type": "invalid_request_error"}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
