"""A checkpoint that does not bring back every weight ends the run instead of training on."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from tests.support.tiny_llama import make_model
from workloads.engine.training.checkpoints import same_shape
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import TataraError, UserError

pytestmark = pytest.mark.unit


def look(model: nn.Module, *missing: str) -> None:
    trainer = RunTrainer.__new__(RunTrainer)
    trainer.model = model
    found = SimpleNamespace(missing_keys=list(missing), unexpected_keys=[])
    trainer._issue_warnings_after_load(found)


def test_a_weight_that_is_not_brought_back_is_named() -> None:
    with pytest.raises(TataraError, match="found none for 1, the first model.norm.weight"):
        look(make_model(), "model.norm.weight")


def test_a_checkpoint_of_other_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text('{"world_size": 2, "data": "abc"}')
    same_shape(tmp_path, {"world_size": 2, "data": "abc", "seed": 42})
    with pytest.raises(UserError, match="with data abc, found abd; use the same rows, or start"):
        same_shape(tmp_path, {"world_size": 2, "data": "abd"})
    with pytest.raises(UserError, match="with world_size 2, found 1; use the same number of nodes"):
        same_shape(tmp_path, {"world_size": 1})


def test_tied_weights_are_written_once() -> None:
    look(make_model(tie_word_embeddings=True), "lm_head.weight")
    look(make_model())
    with pytest.raises(TataraError, match="lm_head.weight"):
        look(make_model(), "lm_head.weight")
