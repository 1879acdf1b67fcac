"""The service that vLLM is for GRPO: its words come from the same profile as the trainer's."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.grpo.rollouts import engine
from workloads.grpo.rollouts import server as serve
from workloads.host.ports import is_free

pytestmark = pytest.mark.unit

RECIPE = "profiles/recipes/grpo-3b-2gpu.yaml"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Mapping[str, str]]]:
    """What the module would have become."""
    found: list[tuple[list[str], Mapping[str, str]]] = []
    monkeypatch.chdir(Path(__file__).resolve().parents[4])
    monkeypatch.delenv("TATARA_VLLM_URL", raising=False)
    monkeypatch.setattr(serve, "is_free", lambda port, host: True)
    monkeypatch.setattr(os, "execve", lambda program, words, env: found.append((words, env)))
    return found


def test_model_type_and_length_are_the_trainers(
    started: list[tuple[list[str], Mapping[str, str]]],
) -> None:
    words = ["grpo.max_completion_length=256", "grpo.max_prompt_length=512", "--resume", "latest"]
    words.append("grpo.max_pixels=200704")
    serve.main([RECIPE, *words])
    ((found, env),) = started
    assert found[:4] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    assert found[4] == "Qwen/Qwen2.5-VL-3B-Instruct"
    options = dict(zip(found[6::2], found[7::2], strict=True))
    assert options["--max-model-len"] == "768" and options["--dtype"] == "bfloat16"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8000")
    assert options["--mm-processor-kwargs"] == '{"max_pixels": 200704}'
    assert options["--weight-transfer-config"] == '{"backend": "nccl"}'
    assert "--revision" not in options and env["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_service_of_compose_is_reached_from_its_network(
    started: list[tuple[list[str], Mapping[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATARA_VLLM_URL", "http://grpo-vllm:8000")
    serve.main([RECIPE])
    ((found, _),) = started
    assert found[found.index("--host") + 1] == "0.0.0.0"


def test_another_workload_is_refused(
    started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["profiles/demo.yaml"]) == 2
    assert "expected `workload: grpo`, found 'llm'" in capsys.readouterr().err
    assert started == []


def test_a_busy_port_is_named_before_the_start(
    started: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "is_free", is_free)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert serve.main([RECIPE, f"generation.port={port}"]) == 2
    assert f"generation.port: expected a free port, found {port} in use" in capsys.readouterr().err
    assert started == []


def test_a_busy_port_for_weights_is_named_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trainer's rank 0 listens there; other ranks do not."""
    monkeypatch.setattr(engine, "find_spec", lambda name: name)
    with socket.create_server(("", 0)) as busy:
        port = busy.getsockname()[1]
        words = [f"generation.group_port={port}", "generation.engine=vllm_server"]
        config, _ = resolve(RECIPE, {}, words)
        with pytest.raises(UserError, match=f"group_port: expected a free port, found {port} in"):
            engine.check(config, sees_images=True, is_main=True)
        engine.check(config, sees_images=True, is_main=False)
    engine.check(config, sees_images=True, is_main=True)
