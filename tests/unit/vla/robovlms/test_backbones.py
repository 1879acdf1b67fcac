"""Adapters of backbones answer exactly as the library's own forward pass."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.tiny_backbones import IMAGE_TOKEN, PALIGEMMA, SMOLVLM
from workloads.errors import UserError
from workloads.vla.robovlms.backbones import PaliGemma, backbone_of
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.spec import HeadSize, PolicySpec

pytestmark = pytest.mark.unit
ACTION = 7  # an id whose embedding stands for the action token


def backbone(
    fields: Mapping[str, Any] = PALIGEMMA, attention: str = "sdpa", **text: object
) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**fields, "text_config": {**fields["text_config"], **text}})
    made = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    return made.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_frame_on_paligemma_is_its_own_forward(attention: str) -> None:
    """Images and text as the prefix that sees itself, the action token behind it, a padded row."""
    own = backbone(PALIGEMMA, attention)
    policy = PolicyModel(PolicySpec(PALIGEMMA, "lstm", HeadSize(48, 16)), own).eval()
    policy.action_token.data = own.get_input_embeddings()(torch.tensor(ACTION)).detach()
    pixels = torch.randn(2, 1, 1, 3, 56, 56)
    texts = [[0, 9, 8, 5, 4], [0, 9, 4]]
    ids = torch.tensor([texts[0], [*texts[1], 1, 1]])
    with torch.no_grad():
        states, _ = policy.states(pixels, ids, (ids != 1).long())
        for row, text in enumerate(texts):
            whole = torch.tensor([[IMAGE_TOKEN] * 16 + text + [ACTION]])
            kinds = torch.zeros_like(whole)
            kinds[:, -1] = 1
            expected = own.model(
                input_ids=whole,
                pixel_values=pixels[row, 0],
                attention_mask=torch.ones_like(whole),
                token_type_ids=kinds,
            ).last_hidden_state[0, -1]
            assert (states[row, 0, 0] - expected).abs().max() < 1e-6
            # Without the prefix's own kind of attention it would be another answer.
            causal = own.model(input_ids=whole, pixel_values=pixels[row, 0]).last_hidden_state
            assert (states[row, 0, 0] - causal[0, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_a_frame_on_smolvlm_is_its_own_forward(kind: str) -> None:
    """Two cameras, the first one next to the text, and a padded row."""
    own = backbone(SMOLVLM | {"model_type": kind})
    spec = PolicySpec(SMOLVLM | {"model_type": kind}, "lstm", HeadSize(48, 16))
    policy = PolicyModel(spec, own).eval()
    policy.action_token.data = own.get_input_embeddings()(torch.tensor(ACTION)).detach()
    pixels = torch.randn(2, 1, 2, 3, 56, 56)
    texts = [[3, 9, 8, 5, 4], [3, 9, 4]]
    ids = torch.tensor([texts[0], [*texts[1], 1, 1]])
    with torch.no_grad():
        states, _ = policy.states(pixels, ids, (ids != 1).long())
        for row, text in enumerate(texts):
            whole = torch.tensor([[text[0], *[IMAGE_TOKEN] * 8, *text[1:], ACTION]])
            found = own.model(
                input_ids=whole,
                pixel_values=pixels[row].flip(1),
                attention_mask=torch.ones_like(whole),
            ).last_hidden_state
            assert (states[row, 0, 0] - found[0, -1]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        (PALIGEMMA, {"GemmaDecoderLayer", "SiglipEncoderLayer"}),
        (SMOLVLM, {"LlamaDecoderLayer"}),
    ],
)
def test_only_layers_that_are_there_are_sharded(fields: dict[str, Any], layers: set[str]) -> None:
    """FSDP refuses a class that no module is of, such as the pool that PaliGemma's tower lacks."""
    policy = PolicyModel(PolicySpec(fields, "lstm", HeadSize(48, 16)), backbone(fields))
    named = set(policy._no_split_modules or ())
    assert layers <= named <= {type(module).__name__ for module in policy.modules()}


def test_frames_side_by_side_see_earlier_ones_only() -> None:
    policy = PolicyModel(
        PolicySpec(PALIGEMMA, "fc", HeadSize(48, 16), history="interleaved"), backbone()
    ).eval()
    pixels, ids = torch.randn(1, 3, 1, 3, 56, 56), torch.tensor([[0, 9, 4]])
    changed = pixels.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        before, _ = policy.states(pixels, ids, torch.ones_like(ids))
        after, _ = policy.states(changed, ids, torch.ones_like(ids))
        alone, _ = policy.states(pixels[:, :1], ids, torch.ones_like(ids))
    assert (before[:, 0] - after[:, 0]).abs().max() < 1e-6
    assert (before[:, :1] - alone).abs().max() < 1e-6
    assert (before[:, 1:] - after[:, 1:]).abs().amax(dim=(0, 2, 3)).min() > 1e-4


def test_what_is_not_offered_is_named() -> None:
    with pytest.raises(UserError, match="set model.attention=sdpa"):
        model = backbone()
        model.config.text_config._attn_implementation_internal = "flash_attention_2"
        PaliGemma().prepare(model)
    with pytest.raises(UserError, match="expected a PaliGemma on gemma, found one on 'gemma2'"):
        PaliGemma().prepare(backbone(model_type="gemma2", head_dim=16))
    with pytest.raises(UserError, match="idefics3 under a policy head, found 'moondream"):
        backbone_of("moondream1", "config.json")
