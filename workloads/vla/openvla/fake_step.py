"""One step of the vla workload on fake tensors; see `workloads.engine.fake_step`.

Training's selections by a mask of labels are slices here: fake tensors have no values.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from workloads.engine.fake_step.card import FLASH
from workloads.engine.fake_step.step import FakeStep, Fields, prepare
from workloads.engine.pretrained.files import weights_dtype
from workloads.vla.config import TEXT_TOKENS, VlaConfig
from workloads.vla.openvla.config import OpenVLASpec, parse
from workloads.vla.openvla.loading import oft_spec, plain, trainable
from workloads.vla.openvla.modeling import OpenVLA, OpenVLAOutput, token_loss
from workloads.vla.openvla.oft import OpenVLAOft

# The L1 loss of an OFT head compares numbers, not tokens.
_END = 1


def build(config: VlaConfig, fields: Fields) -> FakeStep:
    """OpenVLA with its head and adapter, and a micro-batch of images and full rows."""
    model = _model(config, parse(fields))
    rows, cameras = config.train.per_device_batch_size, max(1, len(config.data.cameras))
    tower = model.spec.towers[0]
    side, channels = tower.image_size, cameras * model.vision_backbone.channels
    pixels = torch.empty(rows, channels, side, side)
    if isinstance(model, OpenVLAOft):
        return FakeStep(prepare(config, model, lambda base: trainable(base, config)),
                        _ChunkLoss(config, pixels))  # fmt: skip
    model._add_logits = MethodType(_logits_of_answers(config), model)  # type: ignore[method-assign]
    tokens = torch.zeros(rows, TEXT_TOKENS, dtype=torch.long)

    def loss(model: nn.Module) -> Tensor:
        value: Tensor = model(pixel_values=pixels, input_ids=tokens, labels=tokens).loss
        return value

    return FakeStep(prepare(config, model, lambda base: trainable(base, config)), loss)


def _model(config: VlaConfig, spec: OpenVLASpec) -> OpenVLA:
    attention = "eager" if config.model.attention == "eager" else "sdpa"
    oft = oft_spec(config, config.action_size, config.action_size)
    with no_init_weights():
        model = OpenVLA(spec, attention) if oft is None else OpenVLAOft(spec, attention, oft)
    if attention != "eager":
        model.language_model.config._attn_implementation = FLASH
    model.name_or_path = model.config.name_or_path = config.model.name
    return model.to(weights_dtype(config.train, config.adapter))


def _logits_of_answers(config: VlaConfig) -> Any:
    scored = config.action_size + _END

    def add_logits(
        self: OpenVLA, output: OpenVLAOutput, hidden: Tensor, labels: Tensor, items: Any
    ) -> None:
        kept = hidden[:, -1 - scored : -1].reshape(-1, hidden.shape[-1])
        output.logits = self.language_model.lm_head(kept)
        output.loss = token_loss(output.logits, labels[:, -scored:].reshape(-1), items)

    return add_logits


class _ChunkLoss:
    """The loss of an OFT head, or of its tokens, on the slots of a chunk."""

    def __init__(self, config: VlaConfig, pixels: Tensor) -> None:
        self.pixels = pixels
        self.slots = config.action_head.chunk * config.action_size
        rows, size = len(pixels), config.action_size
        self.tokens = torch.zeros(rows, TEXT_TOKENS + self.slots, dtype=torch.long)
        self.proprio = torch.empty(rows, size) if config.action_head.proprio else None
        self.actions = torch.empty(rows, config.action_head.chunk, size)

    def __call__(self, model: nn.Module) -> Tensor:
        policy = plain(model)
        assert isinstance(policy, OpenVLAOft)
        where = torch.zeros_like(self.tokens, dtype=torch.bool)
        hidden, _ = policy._encode(self.pixels, self.tokens, None, where, self.proprio)
        selected = hidden[:, -1 - self.slots : -1].clone()
        if policy.oft.head == "l1":
            return functional.l1_loss(policy.action_head(selected).float(), self.actions)
        logits = policy.language_model.lm_head(selected).flatten(0, 1)
        return token_loss(logits, self.tokens[:, : self.slots].flatten())
