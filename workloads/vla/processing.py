"""Images and prompts exactly as in OpenVLA's training; one processor trains and serves.

Pixels are resized by Pillow on uint8, cropped, scaled to [0, 1] and normalised once per vision
tower. Everything here is numpy and Pillow.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from workloads.data.images import to_rgb
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.openvla.config import (
    RESIZE_STRATEGIES,
    OpenVLASpec,
    Tower,
    mistakes_named,
    with_published_code,
)

FILE = "preprocessor_config.json"
IGNORE_INDEX = -100
EOS_TOKEN_ID = 2
# The space between "Out:" and the first action token in Llama's tokenizer.
SPACE_TOKEN_ID = 29871
_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_HALF = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Geometry:
    """Resize and crop of images; all towers share it.

    size: (height, width), or the length of the shorter side; crop: (height, width).
    """

    size: tuple[int, int] | int
    crop: tuple[int, int]
    resample: Image.Resampling
    letterbox_fill: tuple[int, int, int] | None


class ImageProcessor:
    """Turns an image into the model's `pixel_values`, float32 [C, H, W].

    Reads the fields of preprocessor_config.json: the resolved `tvf_*` parameters where they
    stand there, as in the published checkpoint with its rounded statistics, else those that
    follow from `image_resize_strategy`, `input_sizes`, `interpolations`, `means` and `stds`.
    """

    def __init__(self, fields: Mapping[str, Any], where: str = FILE) -> None:
        self.fields = dict(fields)
        with mistakes_named(where):
            self.geometry = _geometry(fields, where)
            self._table = np.concatenate(
                [_lookup(norm["mean"], norm["std"]) for norm in _normalisations(fields, where)]
            )

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "ImageProcessor":
        """Read `preprocessor_config.json` of a checkpoint folder, or that file itself."""
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        return cls(read_json(file), str(file))

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the fields as they were read into a checkpoint folder."""
        fields = with_published_code(self.fields)
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (Path(path) / FILE).write_text(text, encoding="utf-8")

    @property
    def channels(self) -> int:
        """3 for one vision tower, 6 for two."""
        return len(self._table)

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """image: Pillow, or RGB uint8 [H, W, 3] → float32 [C, H, W]."""
        return self.normalize(self.resize(image))

    def resize(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The geometric part alone: uint8 [H, W, 3] at the model's size."""
        image = _as_rgb(image)
        geometry = self.geometry
        if geometry.letterbox_fill is not None:
            image = _letterbox(image, geometry.letterbox_fill)
        image = _resize(image, _target(image.size, geometry.size), geometry.resample)
        return np.asarray(_centre_crop(image, geometry.crop))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] → float32 [C, H, W], once for each tower.

        Raises UserError for another type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UserError(
                f"expected uint8 [height, width, 3], found {pixels.dtype} {list(pixels.shape)}; "
                "convert the image to RGB bytes"
            )
        out = np.empty((self.channels, *pixels.shape[:2]), dtype=np.float32)
        for channel, table in enumerate(self._table):
            np.take(table, pixels[:, :, channel % 3], out=out[channel])
        return out


def preprocessor_fields(spec: OpenVLASpec) -> dict[str, Any]:
    """The fields of preprocessor_config.json for a model's towers, full-precision statistics."""
    means = [_statistics(tower)[0] for tower in spec.towers]
    stds = [_statistics(tower)[1] for tower in spec.towers]
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": spec.raw.get("image_resize_strategy", "letterbox"),
        "input_sizes": [[3, tower.image_size, tower.image_size] for tower in spec.towers],
        "interpolations": ["bicubic"] * len(spec.towers),
        "means": means,
        "stds": stds,
        "use_fused_vision_backbone": spec.fused,
    }


def _statistics(tower: Tower) -> tuple[list[float], list[float]]:
    return (_IMAGENET_MEAN, _IMAGENET_STD) if tower.class_token else (_HALF, _HALF)


def _lookup(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Value of each byte, float32 [3, 256], rounded as arithmetic on whole images would."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    means, stds = np.asarray(mean, np.float32)[:, None], np.asarray(std, np.float32)[:, None]
    return (scaled - means) / stds


def _normalisations(fields: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    resolved = fields.get("tvf_normalize_params")
    if resolved:
        return list(resolved)
    means, stds = _list(fields, "means", where), _list(fields, "stds", where)
    return [{"mean": mean, "std": std} for mean, std in zip(means, stds, strict=True)]


def _geometry(fields: Mapping[str, Any], where: str) -> Geometry:
    if fields.get("tvf_resize_params"):
        return _resolved_geometry(fields, where)
    sizes = [tuple(size[1:]) for size in _list(fields, "input_sizes", where)]
    kinds = fields.get("interpolations") or ["bicubic"] * len(sizes)
    height, width = _same(sizes, "input_sizes", where)
    strategy = fields.get("image_resize_strategy", "letterbox")
    if strategy not in RESIZE_STRATEGIES:
        raise UserError(
            f"{where}: expected image_resize_strategy of {', '.join(RESIZE_STRATEGIES)}, "
            f"found {strategy!r}"
        )
    fill = None
    if strategy == "letterbox":
        # The last tower's mean wins, as in the published processor.
        fill = _colour([int(value * 255) for value in _list(fields, "means", where)[-1]], where)
    if strategy != "resize-naive" and height != width:
        raise UserError(f"{where}: expected square input_sizes for {strategy}, found {sizes}")
    return Geometry(
        size=(height, width) if strategy == "resize-naive" else height,
        crop=(height, width),
        resample=_resample(_same(kinds, "interpolations", where), where),
        letterbox_fill=fill,
    )


def _resolved_geometry(fields: Mapping[str, Any], where: str) -> Geometry:
    resizes = _list(fields, "tvf_resize_params", where)
    crops = _list(fields, "tvf_crop_params", where)
    size = _same([_size(resize["size"]) for resize in resizes], "tvf_resize_params", where)
    crop = _same([_size(crop["output_size"]) for crop in crops], "tvf_crop_params", where)
    fill = fields.get("tvf_letterbox_fill") if fields.get("tvf_do_letterbox") else None
    kind = _same([resize.get("interpolation", 3) for resize in resizes], "interpolation", where)
    if any(resize.get("max_size") is not None for resize in resizes):
        raise UserError(f"{where}: expected max_size null in tvf_resize_params, found a value")
    return Geometry(
        size=size,
        crop=(crop, crop) if isinstance(crop, int) else crop,
        resample=_resample(kind, where),
        letterbox_fill=None if fill is None else _colour(fill, where),
    )


def _list(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where}: expected a list {name!r}, found {value!r}; complete the file")
    return list(value)


def _same(values: Sequence[Any], name: str, where: str) -> Any:
    """The value that all towers share: their features are stacked patch by patch."""
    if any(value != values[0] for value in values):
        raise UserError(f"{where}: expected {name} alike for all towers, found {list(values)}")
    return values[0]


def _size(value: Any) -> tuple[int, int] | int:
    if isinstance(value, list | tuple):
        return int(value[0]) if len(value) == 1 else (int(value[0]), int(value[1]))
    return int(value)


def _colour(value: Sequence[int], where: str) -> tuple[int, int, int]:
    if len(value) != 3:
        raise UserError(f"{where}: expected a letterbox fill of 3 values, found {list(value)}")
    return int(value[0]), int(value[1]), int(value[2])


def _resample(kind: str | int, where: str) -> Image.Resampling:
    """Named as in `interpolations`, or numbered as Pillow and torchvision do."""
    names = {item.name.lower(): item for item in Image.Resampling}
    numbers = {int(item): item for item in Image.Resampling}
    found = names.get(kind.lower()) if isinstance(kind, str) else numbers.get(kind)
    if found is None:
        raise UserError(f"{where}: expected an interpolation of {', '.join(names)}, found {kind!r}")
    return found


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"expected a Pillow image or RGB uint8 [height, width, 3], found {image.dtype} "
            f"{list(image.shape)}; convert it first"
        )
    return Image.fromarray(image)


def _letterbox(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """Pad both sides to a square; an odd difference stays one pixel short, as in the original."""
    width, height = image.size
    side = max(width, height)
    across, down = (side - width) // 2, (side - height) // 2
    if not across and not down:
        return image
    return ImageOps.expand(image, border=(across, down, across, down), fill=fill)


def _target(current: tuple[int, int], size: tuple[int, int] | int) -> tuple[int, int]:
    """(width, height) to resize to; a single size is the shorter side's, the ratio stays."""
    if not isinstance(size, int):
        return size[1], size[0]
    width, height = current
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _resize(image: Image.Image, target: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize width first, then height: Pillow 13 itself reverses the order for tall images."""
    across = image.resize((target[0], image.size[1]), resample)
    return across.resize(target, resample)


def _centre_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    if image.size == (crop[1], crop[0]):
        return image
    left, top = _start(image.size[0], crop[1]), _start(image.size[1], crop[0])
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _start(length: int, crop: int) -> int:
    """Start of a centred crop; below 0, where black is added, if the image is too small."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2)


class Tokenizer(Protocol):
    """Interface of a Llama tokenizer."""

    bos_token_id: int

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...


def training_prompt(instruction: str) -> str:
    """The text before the action tokens; it ends with a space, and has no image placeholder."""
    question = f"What action should the robot take to {instruction.lower()}?"
    return f"In: {question.replace('<image>', '').strip()}\nOut: "


def inference_prompt(instruction: str) -> str:
    """The text to predict from; the model itself adds the space, token 29871."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def tokenize_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Ids int64 [L] of a prompt: `<s>`, the text, and token 29871 for its final space."""
    text = prompt.removesuffix(" ")
    ids = tokenizer.encode(text, add_special_tokens=False)
    blank = [] if ids[-1] == SPACE_TOKEN_ID else [SPACE_TOKEN_ID]
    return np.asarray([tokenizer.bos_token_id, *ids, *blank], dtype=np.int64)


def build_example(
    prompt_ids: np.ndarray, action_ids: np.ndarray, predict_stop: bool = True
) -> dict[str, np.ndarray]:
    """One training row: `input_ids` and `labels`, int64 [L].

    prompt_ids [P] end with token 29871; action_ids of any shape are taken in row-major order.
    Labels are -100 but for the action tokens and, with predict_stop, the `</s>` after them. Raises
    UserError for a prompt that ends otherwise.
    """
    actions = np.asarray(action_ids, dtype=np.int64).ravel()
    if len(prompt_ids) == 0 or prompt_ids[-1] != SPACE_TOKEN_ID:
        raise UserError("expected a prompt that ends with token 29871; use tokenize_prompt")
    input_ids = np.concatenate([prompt_ids, actions, [EOS_TOKEN_ID]]).astype(np.int64)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[len(prompt_ids) :] = input_ids[len(prompt_ids) :]
    if not predict_stop:
        labels[-1] = IGNORE_INDEX
    return {"input_ids": input_ids, "labels": labels}


def pad_examples(
    examples: Sequence[Mapping[str, np.ndarray]], pad_token_id: int
) -> dict[str, np.ndarray]:
    """Rows of `build_example` → int64 [B, L] input_ids, labels, attention_mask, padded right."""
    length = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), length)
    batch = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "labels": np.full(shape, IGNORE_INDEX, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
    }
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        batch["input_ids"][row, :size] = example["input_ids"]
        batch["labels"][row, :size] = example["labels"]
        batch["attention_mask"][row, :size] = 1
    return batch
