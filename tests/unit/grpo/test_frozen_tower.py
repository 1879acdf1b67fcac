"""The backward pass stays out of a vision tower in which nothing is trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig, set_seed

from tests.support.tiny_llava import SIDE, TOKENS, write_llava
from workloads.config.merge import resolve
from workloads.grpo import model as grpo_model
from workloads.grpo.config import GrpoConfig
from workloads.grpo.model import learner

pytestmark = pytest.mark.unit

TEXT = ["adapter.method=lora", "adapter.dropout=0"]
QWEN_TEXT = [*TEXT, "adapter.targets=[q_proj,v_proj]"]
EVERYWHERE = [*TEXT, "adapter.targets=[all-linear]"]
Inputs = Mapping[str, Tensor]


def llava(folder: Path) -> tuple[Any, Inputs]:
    own = AutoConfig.from_pretrained(write_llava(folder))
    tokens = torch.randint(4, 40, (1, TOKENS + 8))
    tokens[:, 1 : 1 + TOKENS] = own.image_token_id
    pixels = torch.randn(1, 3, SIDE, SIDE)
    return own, {"input_ids": tokens, "labels": tokens.clone(), "pixel_values": pixels}


def qwen(folder: Path) -> tuple[Any, Inputs]:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
    own = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
        image_token_id=3,
    )
    tokens = torch.randint(4, 50, (1, 12))
    tokens[:, 1:5] = 3
    shown = {"mm_token_type_ids": (tokens == 3).int()}
    shown |= {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14)}
    shown |= {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    return own, {"input_ids": tokens, "labels": tokens.clone(), **shown}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def step(own: Any, inputs: Inputs, *words: str) -> tuple[set[bool], dict[str, Tensor]]:
    """Whether the outputs of the tower's layers need a gradient, and all gradients of a step."""
    settings = ["model.name=data/demo/tiny-llama", "train.gradient_checkpointing=true", *words]
    config, _ = resolve("profiles/demo-grpo.yaml", {}, settings)
    assert isinstance(config, GrpoConfig)
    set_seed(0)
    trained = learner(AutoModelForImageTextToText.from_config(own), config)
    seen: set[bool] = set()
    for path, module in trained.named_modules():
        if path.rpartition(".")[0].endswith(("visual.blocks", "encoder.layers")):
            module.register_forward_hook(lambda _, __, output: seen.add(output.requires_grad))
    # As the trainers call them, and TRL once more after every generation.
    trained.train()
    trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.needs_input_gradients:
        trained.enable_input_require_grads()
    trained.gradient_checkpointing_disable()
    trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained(**inputs).loss.backward()
    found = {name: one.grad for name, one in trained.named_parameters() if one.grad is not None}
    return seen, found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (qwen, QWEN_TEXT),
        (qwen, [*EVERYWHERE, "model.freeze_vision=true"]),
        (qwen, ["model.freeze_vision=true"]),
        (llava, [*EVERYWHERE, "model.freeze_vision=true"]),
        (llava, ["model.freeze_vision=true"]),
    ],
)
def test_no_backward_pass_goes_through_a_frozen_tower(
    make: Callable[[Path], Any], words: list[str], homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no number changes by that."""
    own, inputs = make(homes)
    seen, gradients = step(own, inputs, *words)
    assert seen == {False} and gradients
    monkeypatch.setattr(grpo_model, "spare_frozen_tower", lambda model: None)
    seen, before = step(own, inputs, *words)
    assert seen == {True}  # else transformers has changed, and nothing has to be spared
    assert gradients.keys() == before.keys()
    assert all(torch.equal(gradients[name], before[name]) for name in before)


@pytest.mark.parametrize(("make", "words"), [(qwen, EVERYWHERE), (llava, EVERYWHERE), (qwen, [])])
def test_a_tower_that_learns_gets_its_gradients(
    make: Callable[[Path], Any], words: list[str], homes: Path
) -> None:
    own, inputs = make(homes)
    seen, gradients = step(own, inputs, *words)
    assert seen == {True}
    assert any("visual.blocks" in name or "vision_tower" in name for name in gradients)
