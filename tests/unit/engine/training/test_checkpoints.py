"""A checkpoint that does not bring back every weight ends the run instead of training on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.support.tiny_llama import make_model
from workloads.engine.keep_best import keep_best
from workloads.engine.training.checkpoints import same_shape
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import TataraError, UserError
from workloads.run.integrity import seal

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


SPLIT = {"world_size": 2, "per_device_batch_size": 4, "accumulation_steps": 1}


def test_another_split_of_the_same_global_batch_goes_on(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text(json.dumps(SPLIT))
    told: list[str] = []
    now = {"world_size": 1, "per_device_batch_size": 4, "accumulation_steps": 2}
    same_shape(tmp_path, now, "single", told.append)
    assert "same samples in the same steps" in told[0]
    same_shape(tmp_path, SPLIT, "ddp", told.append)
    assert len(told) == 1


def test_another_global_batch_or_other_states_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text(json.dumps(SPLIT))
    now = {"world_size": 1, "per_device_batch_size": 4, "accumulation_steps": 1}
    with pytest.raises(UserError, match="set train.global_batch_size=8"):
        same_shape(tmp_path, now, "single")
    now["accumulation_steps"] = 2
    for strategy in ("zero2", "fsdp2"):
        with pytest.raises(UserError, match="use as many ranks as before"):
            same_shape(tmp_path, now, strategy)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(UserError, match="use as many ranks as before"):
        same_shape(tmp_path, now, "single")
    same_shape(tmp_path, now, "fsdp2")


def test_tied_weights_are_written_once() -> None:
    look(make_model(tie_word_embeddings=True), "lm_head.weight")
    look(make_model())
    with pytest.raises(TataraError, match="lm_head.weight"):
        look(make_model(), "lm_head.weight")


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({3: math.nan, 6: 1.0, 9: 0.5, 12: 2.0}, 9),
        ({3: math.nan, 6: math.inf}, None),
        ({4: 2.0, 8: 0.5}, None),
        ({3: 2.0, 9: 3.0}, 3),
    ],
)
def test_the_best_checkpoint_has_the_lowest_loss_that_is_a_number(
    tmp_path: Path, losses: dict[int, float], best: int | None
) -> None:
    """E-4."""
    for step in (3, 6, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("x")
        seal(tmp_path / f"checkpoint-{step}", {"step": step})
    space = SimpleNamespace
    trainer: Any = space(
        profile=space(checkpoints=space(keep_best=True)),
        session=space(run=space(checkpoints=tmp_path)),
        state=space(log_history=[{"step": at, "eval_loss": loss} for at, loss in losses.items()]),
    )
    assert RunTrainer.best_step(trainer) == best


@pytest.mark.parametrize(
    ("save", "evaluate", "last", "level", "said"),
    [
        (3, 4, 10, "warning", "both together only at step 12 of 10"),
        (3, 4, 24, "ok", "only every 12 steps"),
        (4, None, 10, "ok", "does nothing"),
        (4, 2, 10, None, ""),
        (4, 4, None, None, ""),
        (1000, 1000, 2, None, ""),
    ],
)
def test_the_check_says_where_keep_best_does_nothing(
    save: int, evaluate: int | None, last: int | None, level: str | None, said: str
) -> None:
    """E-4: no evaluation falls on a saved step."""
    space = SimpleNamespace
    config: Any = space(
        checkpoints=space(keep_best=True, every_steps=save), train=space(max_steps=last)
    )
    found = keep_best(config, evaluate)
    assert [item.level for item in found] == ([level] if level else [])
    assert all(said in item.found for item in found)
