"""The service that vLLM is for GRPO: its words come from the same profile as the trainer's."""

import os
from pathlib import Path

import pytest

from workloads.grpo import serve

pytestmark = pytest.mark.unit

RECIPE = "profiles/recipes/grpo-3b-2gpu.yaml"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the module would have become."""
    found: list[list[str]] = []
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(os, "execvp", lambda program, words: found.append([program, *words]))
    return found


def test_model_and_length_are_the_trainers(started: list[list[str]]) -> None:
    words = ["grpo.max_completion_length=256", "grpo.max_prompt_length=512", "--resume", "latest"]
    serve.main([RECIPE, *words])
    (found,) = started
    assert found[:3] == ["trl", "trl", "vllm-serve"]
    options = dict(zip(found[3::2], found[4::2], strict=True))
    assert options["--model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert options["--max_model_len"] == "768"
    assert options["--port"] == "8000"
    assert "--revision" not in options


def test_another_workload_is_refused(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["profiles/demo.yaml"]) == 2
    assert "expected `workload: grpo`, found 'llm'" in capsys.readouterr().err
    assert started == []
