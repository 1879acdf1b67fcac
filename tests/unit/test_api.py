"""The Python API is what its page says: train, load, generate."""

from pathlib import Path

import pytest

from tests.support.tiny_llama import write_tiny
from workloads import api
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def test_the_public_names() -> None:
    assert api.__all__ == ["generate", "load", "train"]


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
