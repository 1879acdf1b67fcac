"""What is left when the last step is taken."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config

from workloads.engine.finish import forget
from workloads.llm.finish import _bad_rows
from workloads.run import Run

pytestmark = pytest.mark.unit


class Zero3:
    """What transformers asks of DeepSpeed's config before it makes a model."""

    def is_zero3(self) -> bool:
        return True


def test_a_model_made_after_the_training_is_whole() -> None:
    """Under ZeRO-3 one that rank 0 makes alone, to export it, would wait for the other ranks."""
    config: Any = Zero3()
    set_hf_deepspeed_config(config)
    assert is_deepspeed_zero3_enabled()
    forget(SimpleNamespace(accelerator=SimpleNamespace(free_memory=lambda: None)))
    assert not is_deepspeed_zero3_enabled()


def test_bad_rows_are_counted_for_the_summary(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for data, count in (
        ({}, 0),
        ({"data": {"train": {"bad_rows": ["a:1: x", "a:2: y"]}, "evaluation": None}}, 2),
        ({"data": {"train": {"bad_rows": []}, "evaluation": {"bad_rows": ["b:1: z"]}}}, 1),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        assert _bad_rows(run) == count
