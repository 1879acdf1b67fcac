"""`tatara serve`: which of its two servers a model gets, and what is refused before one starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.support.processes import ROOT
from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import write_tiny
from workloads.cli import main
from workloads.vla.openvla.checkpoint import STATISTICS

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("TATARA_SERVE_TOKEN", raising=False)
    return write_tiny(tmp_path / "tiny")


def test_a_model_with_an_adapter_answers_the_openai_client(folder: Path, tmp_path: Path) -> None:
    poems = write_adapter(tmp_path / "poems", folder, 1)
    words = ["serve", str(folder), "--adapter", f"poems={poems}", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workloads.cli", *words],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[0]
    client = openai.OpenAI(base_url=url, api_key="none")
    answer = client.chat.completions.create(
        model="poems", messages=[{"role": "user", "content": "hi"}], max_tokens=4
    )
    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stdout.read() == "stopped\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "expected a token for clients on other machines"),
        (["--host", "203.0.113.7"], "expected a token"),
        (["--adapter", "x=nowhere"], "expected NAME=DIR"),
        (["--engine", "vllm"], "expected the package vllm"),
        (["--four-bit"], "is a language model, which --four-bit is not for"),
        (["--port", "99999"], "cannot be used"),
    ],
)
def test_mistakes_end_before_the_model_is_loaded(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), *words]) == 2
    assert told in capsys.readouterr().err


def test_two_adapters_need_vllm(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", str(folder), "--port", "0"]
    for seed, name in enumerate(("poems", "sums")):
        words += ["--adapter", f"{name}={write_adapter(tmp_path / name, folder, seed)}"]
    assert main(words) == 2
    assert "expected one adapter at most, found poems, sums" in capsys.readouterr().err


def test_a_policy_is_known_by_its_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STATISTICS).write_text("{}")
    assert main(["serve", str(tmp_path), "--name", "robot"]) == 2
    assert "is a robot policy, which --name is not for" in capsys.readouterr().err


def test_no_such_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nothing"]) == 2
    assert main(["serve", "latest"]) == 2
    told = capsys.readouterr().err
    assert "nothing" in told and "expected a run of the llm or grpo or vla workload" in told
