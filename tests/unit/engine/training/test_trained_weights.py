"""Adapters over a quantised base keep the type that `add_adapter` promises: fp32."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.support.tiny_llama import make_model, make_tokenizer
from workloads.engine.pretrained.adapter import add_adapter
from workloads.engine.training.trainer import trained_weights_kept
from workloads.llm.config import LlmConfig
from workloads.llm.data.collate import Collate
from workloads.llm.train import LlmTrainer, arguments
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit


def quantised_base() -> Any:
    """A tiny model that says of itself that it is held in four bits; its weights are not."""
    model = make_model().to(torch.bfloat16)
    model.is_loaded_in_4bit = True
    return model


def test_what_a_library_rounds_comes_back_as_it_was() -> None:
    model = torch.nn.Linear(3, 3)
    before = model.weight.detach().clone()
    model.bias.requires_grad_(False)
    with trained_weights_kept(model):
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16)
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, before)
    assert model.bias.dtype == torch.bfloat16  # frozen: not ours to change


def test_adapters_over_a_quantised_base_are_fp32_inside_the_trainer(tmp_path: Path) -> None:
    config = LlmConfig.model_validate(
        {
            "workload": "llm",
            "name": "one",
            "model": {"name": "base"},
            "data": {"source": "rows.jsonl"},
            "adapter": {"method": "qlora", "dropout": 0},
            "train": {"max_steps": 1, "fused_cross_entropy": False},
            "tracking": {"tensorboard": False},
        }
    )
    session = Session(run=Run(tmp_path / "run"), _console=io.StringIO())
    model = add_adapter(quantised_base(), config.adapter)
    before = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    trainer = LlmTrainer(
        profile=config,
        session=session,
        model=model,
        args=arguments(config, session, has_evaluation=False),
        processing_class=make_tokenizer(),
        train_dataset=Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]),
        data_collator=Collate(0),
    )
    inside = dict(trainer.model.named_parameters())
    assert before
    for name, value in before.items():
        assert inside[name].dtype == torch.float32
        assert torch.equal(inside[name], value)
