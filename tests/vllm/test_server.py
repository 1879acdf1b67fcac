"""vLLM as a service, by its own routes: what the trainer's client asks of it beside new weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from trl.generation.vllm_client import VLLMClient
from vllm.entrypoints.serve.dev.cache.api_router import attach_router

from workloads.config.merge import resolve
from workloads.grpo.config import GrpoConfig
from workloads.grpo.rollouts import engine
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.vllm


def test_new_weights_reset_prefixes_and_encoded_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATARA_RENDEZVOUS_SECRET", "x" * 32)
    reset: list[str] = []

    async def prefixes(*words: Any) -> bool:
        reset.append("prefixes")
        return True

    async def images() -> None:
        reset.append("images")

    app = FastAPI()
    attach_router(app)
    app.state.engine_client = SimpleNamespace(
        reset_prefix_cache=prefixes, reset_encoder_cache=images
    )
    client = VLLMClient.__new__(VLLMClient)
    client.session, client.base_url = TestClient(app), "http://testserver"
    config, _ = resolve("profiles/grpo-h100.yaml", {}, ["generation.engine=vllm_server"])
    assert isinstance(config, GrpoConfig)
    with engine.ready(config, Session(run=Run(tmp_path))):
        client.reset_prefix_cache()
    assert reset == ["images", "prefixes"]
