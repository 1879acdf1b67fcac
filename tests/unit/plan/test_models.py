"""Models by name: what is listed, what fits by method, and what was meant by a wrong name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.planning import GIB, OFFLINE
from workloads.cli import main
from workloads.config.sections import Model
from workloads.engine.hub import hub
from workloads.errors import UserError
from workloads.llm.prompt_formats import FORMS
from workloads.plan.known_shapes import UnknownShape, shape_of
from workloads.plan.model_names import model_file, near_models, renamed
from workloads.plan.models import known_models

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
GONE = "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B"
MEANT = "cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese"


@pytest.fixture(autouse=True)
def at_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    main(["models", "--json", *words])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_it_answers_in_a_second_without_network_or_torch() -> None:
    """In seconds of the processor, which other work on the machine does not add to."""
    code = (
        "import socket, sys, time;"
        "socket.socket.connect = socket.getaddrinfo = None;"
        "from workloads.cli import main; main(['models', '--gpu-memory', '24']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules;"
        "print(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "elyza/Llama-3-ELYZA-JP-8B" in done.stdout
    assert float(done.stderr) < 1


def test_every_model_has_its_facts_once() -> None:
    models = known_models()
    ids = [model.id for model in models]
    assert len(set(ids)) == len(ids)
    languages = [model.language for model in models]
    assert languages == sorted(languages), "Japanese ones first"
    for model in models:
        assert model.licence and model.tokenizer and model.prompt, model.id
        assert model.sure in ("read", "listed", "memory")
        assert model.chat_template is None or model.chat_template in FORMS
        assert (model.shape is None) == (model.sure == "memory" or not model.native), model.id


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llm-jp/llm-jp-3-13b", 13.7),
        ("llm-jp/llm-jp-3-1.8b", 1.87),
        ("llm-jp/llm-jp-3-3.7b", 3.78),
        ("cyberagent/calm3-22b-chat", 22.5),
        ("cyberagent/DeepSeek-R1-Distill-Qwen-14B-Japanese", 14.8),
        ("SakanaAI/TinySwallow-1.5B-Instruct", 1.54),
        ("tokyotech-llm/Llama-3.3-Swallow-70B-Instruct-v0.4", 70.6),
        ("rinna/qwq-bakeneko-32b", 32.8),
        ("Qwen/Qwen3-0.6B", 0.596),
        ("Qwen/Qwen3-4B", 4.02),
        ("Qwen/Qwen3-8B", 8.19),
        ("Qwen/Qwen3-32B", 32.8),
        ("meta-llama/Llama-2-7b-hf", 6.74),
        ("meta-llama/Llama-2-13b-chat-hf", 13.0),
    ],
)
def test_shapes_have_the_parameters_that_the_names_say(name: str, billions: float) -> None:
    shape, _ = shape_of(Model(name=name), {**OFFLINE, "HF_HOME": "/nowhere"})
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_what_is_listed_is_what_the_recipe_is_planned_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (found,) = listed(capsys, "elyza", "--method", "lora")
    (way,) = found["ways"]
    main(["plan", "llm-lora", f"model.name={found['id']}", "--gpu-memory", "24", "--json"])
    assert json.loads(capsys.readouterr().out)["total"] == way["bytes"]


def test_what_does_not_fit_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--gpu-memory", "16", "--language", "ja")
    assert {model["language"] for model in found} == {"ja"}
    sizes = [model["parameters"] for model in found]
    assert sizes == sorted(sizes, reverse=True)
    for model in found:
        assert model["ways"], model["id"]
        assert all(way["bytes"] <= 0.92 * 16 * GIB for way in model["ways"])
    methods = {model["id"]: [way["method"] for way in model["ways"]] for model in found}
    assert methods["elyza/Llama-3-ELYZA-JP-8B"] == ["qlora"], "LoRA of 8B needs more than 16 GB"
    assert MEANT not in methods


def test_full_weights_in_bf16_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "elyza", "--gpu-memory", "64", "--method", "full"]) == 0
    said = capsys.readouterr().out
    assert "52.4*" in said and "train.master_weights=compute" in said


def test_nothing_that_fits_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--gpu-memory", "0.5"]) == 1
    assert main(["models", "ｅｌｙｚａ", "--language", "many"]) == 2
    assert "found some of ja" in capsys.readouterr().err
    for size in ("-3", "0", "nan", "inf"):
        assert main(["models", "--gpu-memory", size]) == 2
        assert main(["plan", "llm-lora", "--gpu-memory", size]) == 2
    assert "expected a number over 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("elyza/Llama-3-ELYZA-8B", "elyza/Llama-3-ELYZA-JP-8B"),
        ("rinna/japanese-gptneox-3.6b-instruction-sft", "rinna/japanese-gpt-neox-3.6b"),
        ("Qwen/Qwen2.5-17B-Instruct", "Qwen/Qwen2.5-"),
        ("somebody/calm3-22b-chatt", "cyberagent/calm3-22b-chat"),
        ("elyzza", "elyza/Llama-3-ELYZA-JP-8B"),
    ],
)
def test_near_names(name: str, near: str) -> None:
    assert any(found.startswith(near) for found in near_models(name))


def test_names_that_are_near_to_nothing() -> None:
    assert near_models("openai/whisper-tiny") == []
    assert renamed("owner/anything") is None


def test_a_name_that_does_not_exist_is_answered_with_the_one_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without asking the hub: by models, plan, and whatever downloads."""
    assert main(["models", GONE]) == 2
    assert MEANT in capsys.readouterr().err
    with pytest.raises(UnknownShape, match=f"set model.name={MEANT}"):
        shape_of(Model(name=GONE.lower()), OFFLINE)
    with pytest.raises(UserError, match=f"set model.name={MEANT}"):
        hub.probe(GONE)


def test_near_names_where_the_hub_has_no_such_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub({"owner/other": tmp_path}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with pytest.raises(UserError, match="did you mean elyza/Llama-3-ELYZA-JP-8B"):
            hub.probe("elyza/Llama-3-ELYZA-8B")
        with pytest.raises(UnknownShape, match="40[14].*did you mean elyza/Llama-3-ELYZA-JP-8B"):
            shape_of(Model(name="elyza/Llama-3-ELYZA-8B"), dict(os.environ))


def test_names_that_were_changed_lead_to_known_models() -> None:
    ids = {model.id for model in known_models()}
    assert all(new in ids and old not in ids for old, new in model_file()["renamed"].items())
