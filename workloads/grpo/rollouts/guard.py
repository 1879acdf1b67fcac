"""Token for vLLM as a service, whose routes accept new weights.

vLLM's own --api-key covers /v1 alone. The server gets `RequireToken` by --middleware, the trainer's
client (TRL 1.16) sends the token with every request; both derive it from the secret of the runs.
"""

import hmac
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workloads.engine.generate.guard import App, Guard
from workloads.run import outputs
from workloads.run.secret import rendezvous_secret

VARIABLE = "TATARA_VLLM_TOKEN"


def token(env: Mapping[str, str]) -> str:
    """The same for all that share `outputs/`, or have the same TATARA_RENDEZVOUS_SECRET."""
    secret = rendezvous_secret(env, outputs(dict(env)))
    return hmac.new(secret, b"vllm", "sha256").hexdigest()


class RequireToken(Guard):
    """ASGI middleware that answers 401 to a request without the token."""

    def __init__(self, app: App) -> None:
        super().__init__(app, os.environ[VARIABLE])


@contextmanager
def client_sends(secret: str) -> Iterator[None]:
    """Context in which TRL's client sends the token."""
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
