"""One step of the grpo workload on fake tensors, GRPO's loss phase or the supervised stage's.

See `workloads.engine.fake_step`. Completions are written before it by another engine, whose memory
the step does not see. Each row shows one image to the models of `_IMAGES`; others get text alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from workloads.engine.fake_step.step import FakeStep, Fields, fake_model, prepare
from workloads.grpo.config import GrpoConfig
from workloads.grpo.model import kind_of, learner

# An image of 512 x 512, where a profile does not say how large images are.
_USUAL_PIXELS = 512 * 512


def build(config: GrpoConfig, fields: Fields) -> FakeStep:
    """The model with its head and its adapter, and a micro-batch of full rows."""
    model = fake_model(config, fields, kind_of)
    fused = {"fused_lm_head": True} if config.fuses_head else {"use_cache": False}
    if config.fuses_head:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompt, answer = config.grpo.max_prompt_length, config.grpo.max_completion_length
    rows = config.train.per_device_batch_size
    tokens = torch.zeros(rows, prompt + answer, dtype=torch.long)
    show = _IMAGES.get(str(fields.get("model_type")), _nothing)
    images = show(config, model.base_model)
    if config.adapter.method == "full":
        learner(model, config)  # in place: what it freezes, checkpointing passes by
    trained = prepare(config, model, lambda base: learner(base, config))

    def loss(model: nn.Module) -> Tensor:
        output = model(input_ids=tokens, labels=tokens, **fused, **images)
        # Prompts have no labels.
        value: Tensor = output.log_probs[:, -answer:].mean() if config.fuses_head else output.loss
        return value

    return FakeStep(trained, loss)


def _nothing(config: GrpoConfig, inner: Any) -> dict[str, Tensor]:
    return {}


def _llava(config: GrpoConfig, inner: Any) -> dict[str, Tensor]:
    """One image a row; where its tokens stand is a matter of values, which fake tensors lack."""
    inner.get_placeholder_mask = MethodType(
        lambda self, ids, inputs_embeds, image_features: _everywhere(ids), inner
    )
    side = inner.config.vision_config.image_size
    return {"pixel_values": torch.empty(config.train.per_device_batch_size, 3, side, side)}


def _qwen(config: GrpoConfig, inner: Any) -> dict[str, Tensor]:
    """One image a row, as large as the profile lets images be, cut up ahead of the tower."""
    vision, rows = inner.config.vision_config, config.train.per_device_batch_size
    merged, patch = vision.spatial_merge_size, vision.patch_size
    down = math.isqrt((config.grpo.max_pixels or _USUAL_PIXELS) // (merged * patch) ** 2)
    patches = (down * merged) ** 2
    # The older tower has no windows.
    window = (vision.window_size // patch) ** 2 if inner.config.model_type == "qwen2_5_vl" else 0
    inner.get_image_features = MethodType(_Cut(rows, patches, merged, window).features, inner)
    inner.get_placeholder_mask = MethodType(
        lambda self, ids, inputs_embeds, image_features: (_everywhere(ids), None), inner
    )
    width = vision.in_channels * vision.temporal_patch_size * patch**2
    length = config.grpo.max_prompt_length + config.grpo.max_completion_length
    return {
        "pixel_values": torch.empty(rows * patches, width),
        "position_ids": torch.zeros(3, rows, length, dtype=torch.long),
    }


def _everywhere(ids: Tensor) -> Tensor:
    return torch.ones_like(ids, dtype=torch.bool).unsqueeze(-1)


@dataclass(frozen=True)
class _Cut:
    """Where the patches of a batch stand, which the library reads from the values of a tensor.

    merged: patches a side that become one token; window: patches of a window, 0 without any.
    """

    rows: int
    patches: int
    merged: int
    window: int

    def features(self, inner: Any, pixel_values: Tensor, grid: Any, **kwargs: Any) -> Any:
        """What `get_image_features` gives: the merged patches of all images."""
        count = self.rows * self.patches
        cut: dict[str, Any] = {
            "position_ids": torch.zeros(count, 2, dtype=torch.long),
            "cu_seqlens": _Borders([self.patches] * self.rows),
        }
        if self.window:
            whole, rest = divmod(self.patches, self.window)
            of_image = [self.window] * whole + ([rest] if rest else [])
            cut["window_index"] = torch.zeros(count // self.merged**2, dtype=torch.long)
            cut["cu_window_seqlens"] = _Borders(of_image * self.rows)
        found = inner.visual(pixel_values.type(inner.visual.dtype), grid_thw=grid, **cut)
        return SimpleNamespace(pooler_output=(found.pooler_output,))


@dataclass(frozen=True)
class _Borders:
    """Stands for a tensor of borders between sequences, of which only their lengths are read."""

    lengths: list[int]

    def __getitem__(self, part: slice) -> "_Borders":
        return self

    def __sub__(self, other: "_Borders") -> "_Borders":
        return self

    def tolist(self) -> list[int]:
        """Lengths of the sequences."""
        return self.lengths


_IMAGES: Mapping[str, Callable[[GrpoConfig, Any], dict[str, Any]]] = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "llava": _llava,
}
