"""Tokens, normalisation, prompts and images against the recorded reference."""

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.openvla_golden import ROOT, json_of
from workloads.vla.actions import ActionTokenizer, normalize, unnormalize
from workloads.vla.processing import (
    ImageProcessor,
    build_example,
    inference_prompt,
    tokenize_prompt,
    training_prompt,
)

pytestmark = pytest.mark.golden
STRATEGIES = list(json_of("image_processor/outputs.json")["strategies"])


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_action_tokens(kind: str) -> None:
    golden, about = np.load(ROOT / "action_tokenizer.npz"), json_of("action_tokenizer.json")
    tokenizer = ActionTokenizer(about["vocab_size"], about["n_bins"])
    ids = tokenizer.encode(golden[f"actions_{kind}"])
    assert ids.dtype == np.int64
    assert np.array_equal(ids, golden[f"token_ids_for_{kind}"])
    assert np.abs(tokenizer.decode(ids) - golden[f"decoded_for_{kind}"]).max() <= 1e-15


def test_decoding_every_id() -> None:
    golden = np.load(ROOT / "action_tokenizer.npz")
    tokenizer = ActionTokenizer(32000)
    decoded = tokenizer.decode(golden["token_ids_all"])
    assert np.abs(decoded - golden["decoded_all"]).max() <= 1e-15
    assert np.abs(tokenizer.edges - golden["bins"]).max() <= 1e-15
    assert np.abs(tokenizer.centres - golden["bin_centers"]).max() <= 1e-15


def statistics(mask: str) -> dict[str, Any]:
    stats = dict(json_of("normalization.json")["statistics"]["crane_x7"]["action"])
    return stats | ({"mask": [True] * 7 + [False]} if mask == "mask_last_false" else {})


@pytest.mark.parametrize("mask", ["no_mask", "mask_last_false"])
@pytest.mark.parametrize("mode", ["normal", "bounds", "bounds_q99"])
def test_normalisation(mode: str, mask: str) -> None:
    golden = np.load(ROOT / "normalization.npz")
    found = normalize(golden["inputs"], statistics(mask), mode)
    # Division of rounding noise by 1e-8 in the constant column says nothing in this mode.
    columns = [0, 1, 2, 3, 4, 6, 7] if mode == "normal" else list(range(8))
    assert found.dtype == np.float32
    assert np.abs(found - golden[f"{mode}__{mask}"])[:, columns].max() <= 1e-6


@pytest.mark.parametrize("mask", ["no_mask", "mask_last_false"])
@pytest.mark.parametrize(("kind", "epsilon"), [("openvla", 0.0), ("oft", 1e-8)])
def test_the_way_back(kind: str, epsilon: float, mask: str) -> None:
    golden = np.load(ROOT / "normalization.npz")
    found = unnormalize(golden["unnorm_inputs"], statistics(mask), epsilon=epsilon)
    assert np.abs(found - golden[f"unnorm_{kind}__{mask}"]).max() <= 1e-12


class Words:
    """A tokenizer of one id a word, to show the order in which a row is put together."""

    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [1000 + len(word) for word in text.split(" ")]


@pytest.mark.parametrize("example", json_of("training_batch.json")["examples"])
def test_training_row(example: dict[str, Any]) -> None:
    tokenizer = ActionTokenizer(32000)
    prompt = training_prompt(example["instruction"])
    assert prompt == example["prompt_before_action_tokens"]
    assert inference_prompt(example["instruction"]) == example["inference_prompt"]
    ids = tokenizer.encode(np.float32(example["action"]))
    assert ids.tolist() == example["action_token_ids"]
    prompt_ids = tokenize_prompt(Words(), prompt)
    assert (prompt_ids[0], prompt_ids[-1]) == (1, 29871)
    row = build_example(prompt_ids, ids)
    assert row["input_ids"].tolist() == [*prompt_ids, *ids, 2]
    assert row["labels"][-9:].tolist() == example["labels_last_9"]
    assert set(row["labels"][:-9].tolist()) == {-100}
    unstopped = build_example(prompt_ids, ids, predict_stop=False)["labels"]
    assert unstopped[-9:].tolist() == example["labels_last_9_without_stop_token_prediction"]


def processor_fields(strategy: str, resolved: bool) -> dict[str, Any]:
    parameters = json_of("image_processor/outputs.json")["strategies"][strategy]
    if resolved:
        return {name: value for name, value in parameters.items() if name != "images"}
    means = {"siglip": [0.5] * 3, "dino": [0.485, 0.456, 0.406]}
    stds = {"siglip": [0.5] * 3, "dino": [0.229, 0.224, 0.225]}
    towers = [name for name in ("dino", "siglip") if f"{name}_only" in strategy]
    towers = towers or ["dino", "siglip"]
    return {
        "image_resize_strategy": strategy.partition("_")[0],
        "input_sizes": [[3, 224, 224]] * len(towers),
        "interpolations": ["bicubic"] * len(towers),
        "means": [means[tower] for tower in towers],
        "stds": [stds[tower] for tower in towers],
    }


def check_images(processor: ImageProcessor, strategy: str) -> None:
    golden = json_of("image_processor/outputs.json")["strategies"][strategy]
    normal = golden["tvf_normalize_params"]
    mean = np.concatenate([np.float32(p["mean"]) for p in normal])[:, None, None]
    std = np.concatenate([np.float32(p["std"]) for p in normal])[:, None, None]
    for name, expected in golden["images"].items():
        found = processor(Image.open(ROOT / f"image_processor/{name}.png"))
        assert (found.dtype, found.shape) == (np.float32, (len(mean), 224, 224))
        quantised = np.round((found * std + mean) * 255).astype(np.uint8)
        digest = hashlib.sha256(np.ascontiguousarray(quantised).tobytes()).hexdigest()
        assert digest == expected["sha256_quantised"], name
        assert np.abs(found.mean((1, 2)) - expected["channel_mean"]).max() <= 1e-5
        assert np.abs(found.std((1, 2)) - expected["channel_std"]).max() <= 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images(strategy: str) -> None:
    check_images(ImageProcessor(processor_fields(strategy, resolved=True)), strategy)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if "published" not in name])
def test_images_from_the_strategy_alone(strategy: str) -> None:
    check_images(ImageProcessor(processor_fields(strategy, resolved=False)), strategy)


def test_the_published_processor(tmp_path) -> None:
    processor = ImageProcessor.from_pretrained(ROOT / "image_processor")
    check_images(processor, "resize-naive__published")
    processor.save_pretrained(tmp_path)
    check_images(ImageProcessor.from_pretrained(tmp_path), "resize-naive__published")
    pixels = np.asarray(Image.open(ROOT / "image_processor/img_300x500.png").convert("RGB"))
    picture = Image.fromarray(pixels)
    assert np.array_equal(processor(pixels), processor(picture))
