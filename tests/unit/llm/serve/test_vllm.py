"""vLLM for a language model: `vllm serve` is started with, and `generate` asks, what we ask."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support import fake_vllm
from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import write_tiny
from workloads.cli import main
from workloads.engine.hub.upload import FACTS

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))
    fake_vllm.install(monkeypatch)
    made = write_tiny(tmp_path / "tiny")
    (made / FACTS).write_text(json.dumps({"data": {"prompt_suffix": " Think."}}))
    return made


def started(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that vLLM's server is started with, and its environment."""
    seen: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: seen.append(call))
    main(["serve", *words, "--engine", "vllm", "--port", "0"])
    ((_, line, env),) = seen
    assert line[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    options: dict[str, Any] = {"model": line[4]}
    for word in line[5:]:
        if word.startswith("--"):
            options[word] = []
            name = word
        else:
            options[name].append(word)
    return options, env


def test_the_server_has_template_ends_and_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATARA_SERVE_TOKEN", "secret")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    options, env = started(monkeypatch, str(folder), "--precision", "fp32")
    assert options["model"] == str(folder)
    assert options["--served-model-name"] == ["tiny"] and options["--dtype"] == ["float32"]
    assert options["--host"] == ["127.0.0.1"] and int(options["--port"][0]) > 0
    assert options["--middleware"] == ["workloads.engine.generate.guard.ServeGuard"]
    (files,) = options["--tokenizer"]
    assert options["--generation-config"] == [files]
    template = Path(options["--chat-template"][0]).read_text()
    asked = [{"role": "user", "content": "hi"}]
    text = AutoTokenizer.from_pretrained(files).apply_chat_template(
        asked, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == "<|begin|><|user|>hi Think.<|end|><|assistant|>"
    assert json.loads((Path(files) / "generation_config.json").read_text())["eos_token_id"] == 2
    assert env["TATARA_SERVE_TOKEN"] == "secret" and env["HF_HUB_OFFLINE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in env and "--lora-modules" not in options
    assert "secret" not in " ".join(map(str, options.values()))


def test_several_adapters_are_models_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poems = write_adapter(tmp_path / "poems", folder, 1)
    sums = write_adapter(tmp_path / "sums", folder, 2, r=12)
    options, _ = started(monkeypatch, str(poems), "--adapter", f"sums={sums}")
    assert options["model"] == str(folder) and options["--served-model-name"] == ["tiny"]
    assert options["--lora-modules"] == [f"poems={poems}", f"sums={sums}"]
    assert options["--max-lora-rank"] == ["16"] and options["--max-loras"] == ["2"]


@pytest.mark.parametrize(
    ("changes", "base", "told"),
    [
        ({"use_dora": True}, "tiny", "plain LoRA of rank 512 at most.*found use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "tiny", "found modules_to_save="),
        ({}, "elsewhere", "expected an adapter of"),
    ],
)
def test_what_vllm_cannot_hold_is_refused(
    folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    base: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = write_adapter(tmp_path / "odd", tmp_path / base, 1, **changes)
    words = ["--adapter", f"odd={odd}", "--engine", "vllm"]
    assert main(["serve", str(folder), *words, "--port", "0"]) == 2
    assert re.search(told, capsys.readouterr().err, re.DOTALL)


def test_generate_answers_alike_by_both(folder: Path, tmp_path: Path) -> None:
    poems = write_adapter(tmp_path / "poems", folder, 1)
    rows = [{"prompt": "犬は何匹?"}, {"prompt": "hi"}, {"prompt": "a longer question than these"}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--input", "in.jsonl", "--precision", "fp32", "--max-new-tokens", "12"]
    for more in ([], ["--adapter", f"poems={poems}"]):
        found = []
        for engine in ("transformers", "vllm"):
            output = Path(f"{engine}-{len(more)}.jsonl")
            words = ["generate", str(folder), *own, *more, "--engine", engine]
            assert main([*words, "--output", str(output)]) == 0
            found.append(output.read_text())
        assert found[0] == found[1] and found[0].count("\n") == 3


def test_a_prompt_beyond_the_positions_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text(json.dumps({"prompt": "a" * 600}) + "\n")
    words = ["generate", str(folder), "--input", "in.jsonl", "--output", "out.jsonl"]
    assert main([*words, "--engine", "vllm"]) == 2
    assert "the model's 512 positions, found 6" in capsys.readouterr().err
