"""Which steps must not be applied, under each way of scaling and stepping."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workloads.engine.training.arguments import _deepspeed
from workloads.engine.training.trainer import RunTrainer
from workloads.llm.config import LlmConfig

pytestmark = pytest.mark.unit
FINE, BAD = torch.tensor(1.5), torch.tensor(math.nan)


def is_unfit(norm: Any, scale: float | None = None, **deepspeed: bool) -> bool:
    """scale: of an fp16 scaler; deepspeed: whether it is fp16, and whether a step was skipped."""
    trainer = RunTrainer.__new__(RunTrainer)
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    skipped = deepspeed.get("skipped", False)
    trainer.accelerator = SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=skipped)
    trainer.is_deepspeed_enabled = bool(deepspeed)
    trainer.args = SimpleNamespace(fp16=deepspeed.get("fp16", False))
    return trainer._is_unfit(norm)


def test_without_a_scaler_the_norm_decides() -> None:
    assert not is_unfit(FINE)
    assert is_unfit(BAD) and is_unfit(torch.tensor(math.inf))


def test_a_scaler_looks_for_its_scale_first() -> None:
    assert not is_unfit(BAD, scale=65536.0) and not is_unfit(BAD, scale=1.0)
    assert is_unfit(BAD, scale=0.5), "no scale helps: it would be skipped to the end of the run"
    assert not is_unfit(FINE, scale=0.5)


def test_deepspeed_has_stepped_already_and_gives_the_norm_as_a_number() -> None:
    assert not is_unfit(1.5, fp16=False, skipped=False)
    assert is_unfit(math.nan, fp16=False, skipped=True)
    assert not is_unfit(math.inf, fp16=True, skipped=True), "fp16 has a scale of its own"
    config = LlmConfig.model_validate(
        {"workload": "llm", "name": "a", "model": {"name": "b"}, "data": {"source": "c"}}
    )
    assert _deepspeed(config, 2)["bf16"]["check_grad_overflow"] is True
