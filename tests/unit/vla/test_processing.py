"""Image geometry and training rows beyond what is recorded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workloads.errors import UserError
from workloads.vla.openvla.config import parse
from workloads.vla.processing import (
    ImageProcessor,
    build_example,
    pad_examples,
    preprocessor_fields,
)

pytestmark = pytest.mark.unit
FIELDS = {
    "image_resize_strategy": "letterbox",
    "input_sizes": [[3, 20, 20]],
    "interpolations": ["bicubic"],
    "means": [[0.5, 0.5, 0.5]],
    "stds": [[0.5, 0.5, 0.5]],
}


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("strategy", ["letterbox", "resize-naive", "resize-crop"])
@pytest.mark.parametrize("size", [(31, 17), (17, 31), (20, 20), (5, 9), (1, 1)])
def test_every_size_comes_out_alike(strategy: str, size: tuple[int, int]) -> None:
    processor = ImageProcessor(FIELDS | {"image_resize_strategy": strategy})
    out = processor(picture(*size))
    assert (out.shape, out.dtype) == ((3, 20, 20), np.float32)
    assert out.min() >= -1 and out.max() <= 1


def test_letterbox_keeps_the_picture_and_fills_the_rest() -> None:
    processor = ImageProcessor(FIELDS)
    pixels = np.full((10, 20, 3), 255, dtype=np.uint8)
    out = processor.resize(pixels)
    assert (out[0] == 127).all() and (out[-1] == 127).all()
    assert (out[8:12] == 255).all()


def test_crop_takes_the_middle() -> None:
    processor = ImageProcessor(FIELDS | {"image_resize_strategy": "resize-crop"})
    pixels = picture(40, 20)
    assert np.array_equal(processor.resize(pixels), pixels[:, 10:30])


def test_grey_and_transparent_images_become_rgb() -> None:
    processor = ImageProcessor(FIELDS)
    grey = Image.fromarray(picture(20, 20)[:, :, 0])
    assert processor(grey).shape == (3, 20, 20)
    assert processor(grey.convert("RGBA")).shape == (3, 20, 20)


BROKEN = [
    ({"image_resize_strategy": "stretch"}, "found 'stretch'"),
    ({"input_sizes": None}, "expected a list 'input_sizes', found None"),
    ({"input_sizes": [[3, 20, 20], [3, 24, 24]]}, "expected input_sizes alike for all towers"),
    ({"interpolations": ["cubic"]}, "found 'cubic'"),
    ({"input_sizes": [[3, 20, 24]]}, "expected square input_sizes for letterbox"),
    ({"interpolations": 3}, "found a mistake: 'int' object is not"),
    ({"stds": [[0.5, 0.5]]}, "found a mistake: "),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_broken_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageProcessor(FIELDS | changes)


def test_broken_images() -> None:
    processor = ImageProcessor(FIELDS)
    with pytest.raises(UserError, match=r"found float32 \[20, 20, 3\]"):
        processor(picture(20, 20).astype(np.float32))
    with pytest.raises(UserError, match=r"found uint8 \[3, 20, 20\]"):
        processor(np.moveaxis(picture(20, 20), -1, 0))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preprocessor_config\.json, found none"):
        ImageProcessor.from_pretrained(tmp_path)


def test_fields_for_a_new_checkpoint(tmp_path: Path) -> None:
    raw = {
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "image_resize_strategy": "resize-naive",
        "text_config": {"vocab_size": 32064},
    }
    fields = preprocessor_fields(parse(raw))
    ImageProcessor(fields).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == fields
    out = ImageProcessor.from_pretrained(tmp_path)(picture(30, 40))
    assert out.shape == (6, 224, 224)
    assert np.allclose(out[:3].mean(), (out[3:].mean() / 2 + 0.5 - 0.449) / 0.226, atol=0.02)


def test_rows_are_padded_on_the_right() -> None:
    prompt = np.array([1, 50, 29871])
    rows = [build_example(prompt, [31800, 31801]), build_example(prompt, [31900])]
    batch = pad_examples(rows, pad_token_id=32000)
    assert batch["input_ids"].tolist() == [
        [1, 50, 29871, 31800, 31801, 2],
        [1, 50, 29871, 31900, 2, 32000],
    ]
    assert batch["labels"].tolist()[1] == [-100, -100, -100, 31900, 2, -100]
    assert batch["attention_mask"].sum(axis=1).tolist() == [6, 5]
    with pytest.raises(UserError, match="ends with token 29871"):
        build_example(np.array([1, 50]), [31800])
