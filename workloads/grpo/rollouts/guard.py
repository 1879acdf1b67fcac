"""The token without which vLLM as a service answers nobody: its addresses take new weights.

vLLM's own --api-key covers /v1 alone. The server gets `RequireToken` by --middleware, the trainer's
client (TRL 1.16) sends the token with every request; both make it of the secret of the runs.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from workloads.run import outputs
from workloads.run.secret import rendezvous_secret

VARIABLE = "TATARA_VLLM_TOKEN"
_OPEN = "/health"  # what compose and the trainer ask while the server starts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def token(env: Mapping[str, str]) -> str:
    """The same for all that share `outputs/`, or have the same TATARA_RENDEZVOUS_SECRET."""
    secret = rendezvous_secret(env, outputs(dict(env)))
    return hmac.new(secret, b"vllm", "sha256").hexdigest()


class RequireToken:
    """ASGI middleware that answers 401 to a request without the token."""

    def __init__(self, app: App) -> None:
        self._app, self._wanted = app, f"Bearer {os.environ[VARIABLE]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == _OPEN or self._has_token(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    def _has_token(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)


@contextmanager
def client_sends(secret: str) -> Iterator[None]:
    """Within: TRL's client sends the token, from its first request that needs one."""
    from trl.generation.vllm_client import VLLMClient

    own = VLLMClient.check_server

    def check_server(self: Any, *args: Any, **kwargs: Any) -> None:
        self.session.headers["Authorization"] = f"Bearer {secret}"
        own(self, *args, **kwargs)

    VLLMClient.check_server = check_server
    try:
        yield
    finally:
        VLLMClient.check_server = own
