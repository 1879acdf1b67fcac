"""One step of a policy head on fake tensors; see `workloads.engine.fake_step`.

What training selects by a mask of the labels is sliced here: fake tensors have no values.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AttentionInterface, AutoConfig
from transformers.initialization import no_init_weights
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from workloads.engine.fake_step.card import FLASH
from workloads.engine.fake_step.step import FakeStep, Fields, fake_model, prepare
from workloads.engine.pretrained.files import weights_dtype
from workloads.engine.pretrained.load import IMAGES
from workloads.vla.config import TEXT_TOKENS, VlaConfig
from workloads.vla.robovlms.backbones import Qwen25Vl, SmolVLM, backbone_of
from workloads.vla.robovlms.loading import chosen_attention, freeze_unused, trainable
from workloads.vla.robovlms.modeling import PolicyModel, PolicyOutput, discrete_loss
from workloads.vla.robovlms.spec import HeadSize, PolicySpec


def build(config: VlaConfig, fields: Fields) -> FakeStep:
    """The backbone with its head and adapter, and a micro-batch of full windows."""
    head = config.action_head
    adapter = backbone_of(str(fields["model_type"]), "config.json")
    own = chosen_attention(config.model, adapter, AutoConfig.for_model(**fields))
    config = config.model_copy(update={"model": own})
    backbone = fake_model(config, fields, lambda _: IMAGES)
    size = HeadSize(
        adapter.features(backbone.config), head.hidden, config.action_size, config.chunk,
        head.latent, head.layers, config.window, head.pool, head.dropout, head.gripper,
    )  # fmt: skip
    state = config.action_size if head.state else 0
    spec = PolicySpec(fields, head.kind, size, head.history, head.reads, state)
    with no_init_weights():
        model = PolicyModel(spec, backbone).to(weights_dtype(config.train, config.adapter))
    model.name_or_path = config.model.name
    freeze_unused(model)

    rows, steps = config.train.per_device_batch_size, config.window
    cameras, side = max(1, len(config.data.cameras)), adapter.image_size(backbone.config)
    pixels = torch.empty(rows, steps, cameras, 3, side, side)
    if isinstance(adapter, Qwen25Vl):
        _cut_alike(backbone.model.visual, rows * steps, side)
    if isinstance(adapter, SmolVLM):
        embeddings = backbone.model.vision_model.embeddings
        embeddings.forward = MethodType(_of_whole_images, embeddings)
    ids = torch.zeros(rows, TEXT_TOKENS, dtype=torch.long)
    if spec.is_discrete:
        model._discrete = MethodType(_discrete_of_full_rows, model)
        ids = torch.zeros(rows, steps, TEXT_TOKENS + model.answer - 1, dtype=torch.long)
    actions = torch.empty(rows, steps, config.chunk, config.action_size)
    valid = torch.ones(rows, steps, config.chunk, dtype=torch.bool)
    states = torch.empty(rows, steps, state) if state else None

    def loss(model: nn.Module) -> Tensor:
        # In training Kosmos-2 randomly skips layers, which needs a value.
        adapter.language(backbone).training = False
        mask = torch.ones_like(ids)
        found: Tensor = model(pixels, ids, mask, states, actions, valid, ids).loss
        return found

    return FakeStep(prepare(config, model, lambda base: trainable(base, config)), loss)


def _discrete_of_full_rows(
    self: PolicyModel, pixel_values: Tensor, input_ids: Tensor, mask: Tensor, labels: Tensor
) -> PolicyOutput:
    states, _, used = self.read(pixel_values, input_ids, mask)
    kept = states[..., -1 - self.answer : -1, :].flatten(0, -2)
    logits = self.adapter.logits(self.backbone, kept)
    loss = discrete_loss(logits, labels[..., -self.answer :].flatten())
    return PolicyOutput(loss=loss, logits=logits, attention_mask=used)


def _of_whole_images(self: Any, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
    """SmolVLM's patches with their positions, none left out."""
    patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    numbers = torch.arange(self.num_positions).expand(len(patches), -1)
    found: Tensor = patches + self.position_embedding(numbers)
    return found


# Its name tells Qwen's tower that the kernel takes all images at once.
_FLASH_OF_IMAGES = f"flash_{FLASH}"


def _cut_alike(tower: Any, images: int, side: int) -> None:
    """Give Qwen's tower what it reads from the images' sizes, which fake tensors do not hold."""
    AttentionInterface.register(_FLASH_OF_IMAGES, AttentionInterface()[FLASH])
    tower.config._attn_implementation = _FLASH_OF_IMAGES
    own, patches = tower.config, side // tower.config.patch_size
    with unset_fake_temporarily():
        grid = torch.tensor([[1, patches, patches]]).expand(images, 3)
        index, windows = get_vision_window_index(
            grid, own.spatial_merge_size, own.window_size, own.patch_size
        )
        facts = {
            "position_ids": get_vision_position_ids(grid, own.spatial_merge_size),
            "cu_seqlens": torch.arange(images + 1, dtype=torch.int32) * patches**2,
            "max_seqlen": patches**2,
            "window_index": index,
            "cu_window_seqlens": windows,
            "max_window_seqlen": int(windows.diff().max()),
        }
    tower.forward = partial(tower.forward, **facts)
