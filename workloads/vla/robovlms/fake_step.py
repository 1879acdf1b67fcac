"""One step of a policy head on fake tensors; see `workloads.engine.fake_step`."""

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from workloads.engine.fake_step.step import FakeStep, Fields, fake_model, prepare
from workloads.engine.pretrained.files import weights_dtype
from workloads.engine.pretrained.load import IMAGES
from workloads.errors import UserError
from workloads.vla.config import TEXT_TOKENS, VlaConfig
from workloads.vla.robovlms.backbones import backbone_of
from workloads.vla.robovlms.loading import freeze_unused, trainable
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.spec import HeadSize, PolicySpec


def build(config: VlaConfig, fields: Fields) -> FakeStep:
    """The backbone with its head and adapter, and a micro-batch of full windows.

    Raises UserError for discrete actions.
    """
    head = config.action_head
    if head.kind == "discrete":
        raise UserError(
            "action_head.kind: expected lstm, gpt or fc for a step on fake tensors, "
            "found discrete; leave out --exact"
        )
    backbone = fake_model(config, fields, lambda _: IMAGES)
    adapter = backbone_of(str(fields["model_type"]), "config.json")
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
    ids = torch.zeros(rows, TEXT_TOKENS, dtype=torch.long)
    actions = torch.empty(rows, steps, config.chunk, config.action_size)
    valid = torch.ones(rows, steps, config.chunk, dtype=torch.bool)
    states = torch.empty(rows, steps, state) if state else None

    def loss(model: nn.Module) -> Tensor:
        # In training Kosmos-2 draws for each layer whether to skip it, which asks for a value.
        adapter.language(backbone).training = False
        found: Tensor = model(pixels, ids, torch.ones_like(ids), states, actions, valid).loss
        return found

    return FakeStep(prepare(config, model, lambda base: trainable(base, config)), loss)
