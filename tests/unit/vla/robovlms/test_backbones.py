"""Adapters of backbones answer exactly as the library's own forward pass."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.tiny_backbones import (
    IMAGE_TOKEN,
    PALIGEMMA,
    PALIGEMMA2,
    QWEN,
    SMOLVLM,
    VISION_END,
    VISION_START,
)
from workloads.errors import UserError
from workloads.vla.robovlms.backbones import PaliGemma, backbone_of
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.sequence import joined
from workloads.vla.robovlms.spec import HeadSize, PolicySpec

pytestmark = pytest.mark.unit
ACTION = 7  # an id whose embedding stands for the action token


KINDS = {"paligemma": PALIGEMMA, "paligemma2": PALIGEMMA2, "smolvlm": SMOLVLM, "qwen": QWEN}


def backbone(fields: Mapping[str, Any] = PALIGEMMA, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**fields)
    made = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    return made.eval()


def policy_on(kind: str, head: str = "fc", history: Any = "interleaved") -> PolicyModel:
    fields = KINDS[kind]
    own = backbone(fields, "eager" if kind == "paligemma2" else "sdpa")
    size = HeadSize(48, 16, chunk=2, window=3)
    policy = PolicyModel(PolicySpec(fields, head, size, history=history, usable=900), own).eval()
    if head != "discrete":
        policy.action_token.data = own.get_input_embeddings()(torch.tensor(ACTION)).detach()
    return policy


@pytest.mark.parametrize(
    ("fields", "attention"), [(PALIGEMMA, "sdpa"), (PALIGEMMA, "eager"), (PALIGEMMA2, "eager")]
)
def test_a_frame_on_paligemma_is_its_own_forward(fields: dict[str, Any], attention: str) -> None:
    """Images and text as the prefix that sees itself, the action token behind it, a padded row."""
    own = backbone(fields, attention)
    policy = PolicyModel(PolicySpec(fields, "lstm", HeadSize(48, 16)), own).eval()
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_frames_on_qwen_are_its_own_forward(attention: str) -> None:
    """Two frames side by side, of two cameras each, and a padded row: patches, windows, and the
    positions of time, row and column as its own processor and model have them."""
    own = backbone(QWEN, attention)
    spec = PolicySpec(QWEN, "fc", HeadSize(48, 16), history="interleaved")
    policy = PolicyModel(spec, own).eval()
    policy.action_token.data = own.get_input_embeddings()(torch.tensor(ACTION)).detach()
    pixels = torch.randn(2, 2, 2, 3, 224, 224)
    texts = [[3, 9, 8, 5, 4, 11], [3, 9, 8, 4]]
    ids = torch.tensor([texts[0], [*texts[1], 1, 1]])
    image = [VISION_START, *[IMAGE_TOKEN] * 16, VISION_END]
    cut = Qwen2VLImageProcessorPil().patchify
    with torch.no_grad():
        states, _ = policy.states(pixels, ids, (ids != 1).long())
        for row, text in enumerate(texts):
            frame = [*text[:3], *image, *image, *text[3:], ACTION]
            whole = torch.tensor([[*frame, *frame]])
            seen = [cut(part.numpy(), 28, 2, 2)[0] for part in pixels[row].flip(1).flatten(0, 1)]
            inputs = {
                "input_ids": whole,
                "pixel_values": torch.cat([torch.from_numpy(part) for part in seen]),
                "image_grid_thw": torch.tensor([[1, 8, 8]] * 4),
                "attention_mask": torch.ones_like(whole),
            }
            of_images = (whole == IMAGE_TOKEN).int()
            found = own.model(**inputs, mm_token_type_ids=of_images).last_hidden_state[0]
            ends = [len(frame) - 1, 2 * len(frame) - 1]
            assert (states[row, :, 0] - found[ends]).abs().max() < 1e-6
            # With positions of text alone it would be another answer.
            own.model.rope_deltas = None
            plain = own.model(**inputs).last_hidden_state[0]
            assert (states[row, :, 0] - plain[ends]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_text_reads_the_same_beside_a_long_one(kind: str) -> None:
    """Frames side by side have their padding between them."""
    policy = policy_on(kind)
    if kind == "paligemma2":  # a sliding window counts padding: here it holds all
        policy.backbone.config.text_config.sliding_window = 4096
    side = policy.adapter.image_size(policy.backbone.config)
    pixels, ids = torch.randn(2, 2, 1, 3, side, side), torch.tensor([[3, 9, 8, 4], [3, 9, 8, 5]])
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    with torch.no_grad():
        alone, _ = policy.states(pixels, ids, torch.ones_like(ids))
        beside, _ = policy.states(pixels, padded, (padded != 1).long())
    assert (alone - beside).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_decoded_as_one_pass_reads_them(kind: str) -> None:
    """Id by id with a cache, behind a frame that has its own actions."""
    policy = policy_on(kind, "discrete")
    side = policy.adapter.image_size(policy.backbone.config)
    pixels, ids = torch.randn(1, 2, 2, 3, side, side), torch.tensor([[[3, 9, 8, 5, 4]] * 2])
    first, second = policy.embedded(pixels, ids, torch.ones_like(ids)).rows()
    said = policy.adapter.embed(policy.backbone, torch.tensor([[500, 600, 700]]))
    tokens = joined([first.continued(said), second])
    with torch.no_grad():
        found = policy.generate(tokens, 5)
        whole = tokens.continued(policy.adapter.embed(policy.backbone, found))
        states = policy.adapter.read(policy.backbone, whole)
        again = policy.adapter.logits(policy.backbone, states[:, -6:-1]).argmax(dim=-1)
    assert torch.equal(found, again)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_do_not_tell_what_they_are(kind: str) -> None:
    """Ids of actions are seen by later ids only, never by the images and the words."""
    policy = policy_on(kind, "discrete", "none")
    side = policy.adapter.image_size(policy.backbone.config)
    pixels = torch.randn(1, 1, 1, 3, side, side)
    ids = torch.tensor([[[3, 9, 8, *range(500, 500 + policy.answer)]]])
    changed = ids.clone()
    changed[..., 3:] += 1
    labels = ids.clone()
    with torch.no_grad():
        one, other = (
            policy(pixels, given, torch.ones_like(ids), labels=labels).logits
            for given in (ids, changed)
        )
    before = 3 - policy.adapter.opening
    assert (one[: before + 1] - other[: before + 1]).abs().max() < 1e-6
    assert (one[before + 1 :] - other[before + 1 :]).abs().amax(dim=1).min() > 1e-5


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        (PALIGEMMA, {"GemmaDecoderLayer", "SiglipEncoderLayer"}),
        (SMOLVLM, {"LlamaDecoderLayer"}),
        (QWEN, {"Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"}),
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
    model = backbone()
    with pytest.raises(UserError, match="set model.attention=sdpa"):
        model.config.text_config._attn_implementation_internal = "flash_attention_2"
        PaliGemma().prepare(model)
    with pytest.raises(UserError, match="expected a PaliGemma on gemma or gemma2, found one on"):
        model.config.text_config.model_type = "gemma3_text"
        PaliGemma().prepare(model)
    with pytest.raises(UserError, match="expected eager, found 'sdpa'.*set model.attention=eager"):
        PaliGemma().prepare(backbone(PALIGEMMA2))
    with pytest.raises(UserError, match="qwen2_5_vl under a policy head, found 'moondream"):
        backbone_of("moondream1", "config.json")
