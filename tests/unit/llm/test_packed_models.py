"""Packing is refused for models in which the samples of a row would see each other."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTNeoXConfig,
    Lfm2Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.support.tiny_llama import make_config, make_model
from workloads.errors import UserError
from workloads.llm.packed import refuse_mixing

pytestmark = pytest.mark.unit

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def made(config: PreTrainedConfig, **more: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, **more)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_knows_positions_keeps_samples_apart(attention: str) -> None:
    refuse_mixing(made(make_config(initializer_range=0.02), attn_implementation=attention))
    refuse_mixing(made(GPTNeoXConfig(**SIZE, intermediate_size=64), attn_implementation=attention))


def test_in_other_types_too_and_the_model_is_left_as_it_was() -> None:
    model = make_model().to(torch.bfloat16).train()
    refuse_mixing(model)
    assert model.training and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "config",
    [
        FalconConfig(**SIZE, alibi=False),
        Lfm2Config(
            **SIZE,
            intermediate_size=64,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
            initializer_range=0.06,
        ),
        BloomConfig(**SIZE, n_layer=2, n_head=4),
    ],
    ids=["mask without positions", "convolution", "no positions"],
)
def test_models_that_mix_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(UserError, match=r"data\.packing=true: .*; set data\.packing=false"):
        refuse_mixing(made(config))
