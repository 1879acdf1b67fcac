"""The Python API is what its page says: train, load, generate."""

import json
from inspect import signature
from pathlib import Path

import pytest

from tests.support.tiny_llama import write_tiny
from workloads import api
from workloads.errors import TataraError, UserError

pytestmark = pytest.mark.unit


def test_the_public_names() -> None:
    assert api.__all__ == ["generate", "load", "train"]
    parameters = {name: list(signature(getattr(api, name)).parameters) for name in api.__all__}
    assert parameters["train"] == ["rows", "profile", "settings"]
    assert parameters["load"] == ["model", "adapters", "precision"]
    drawn = ["max_new_tokens", "temperature", "top_p", "top_k", "seed", "batch_size"]
    assert parameters["generate"] == ["model", "prompts", *drawn]


def test_rows_are_trained_on_and_the_run_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of a real training, from rows in memory to an answer."""
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows = [{"question": f"{number} + 1?", "answer": f"{number + 1}"} for number in range(8)]
    settings = {
        "parallel.nodes": 1,
        "parallel.strategy": "single",
        "train.max_steps": 2,
        "train.per_device_batch_size": 4,
        "data.eval_rows": 0,
        "evaluation.every_steps": None,
        "evaluation.task": None,
        "checkpoints.every_steps": None,
        "tracking.tensorboard": False,
    }
    run = api.train(rows, "profiles/demo.yaml", settings)
    assert run.path.parent == tmp_path / "outputs" / "demo"
    assert json.loads((run.final / "tatara.json").read_text())["step"] == 2
    assert run.config().data.source.startswith(str(tmp_path / "outputs" / "rows"))
    answer = api.generate(api.load(run), "3 + 1?", max_new_tokens=4)
    assert isinstance(answer, str)


def test_texts_are_trained_on_as_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    seen: list[str] = []
    monkeypatch.setattr("workloads.cli.main", lambda words: seen.extend(words) or 2)
    with pytest.raises(TataraError, match="code 2"):
        api.train(["質問: 首都は?\n回答: 東京です。"], "profiles/demo.yaml")
    assert "data.format=text" in seen


def test_a_model_is_loaded_and_asked(tmp_path: Path) -> None:
    model = api.load(write_tiny(tmp_path / "tiny"), precision="fp32")
    one = api.generate(model, "hi", max_new_tokens=4)
    talk = [{"role": "user", "content": "hi"}]
    assert api.generate(model, ["hi", talk], max_new_tokens=4) == [one, one]


def test_no_rows_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    with pytest.raises(UserError, match="expected rows to train on"):
        api.train([])
    with pytest.raises(UserError, match="workload llm, found vla"):
        api.train(["a text"], "profiles/vla.yaml")
