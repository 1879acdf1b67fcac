"""One step of the llm workload on fake tensors; see `workloads.engine.fake_step`."""

import torch
from torch import Tensor, nn

from workloads.engine.fake_step.step import FakeStep, Fields, fake_model, prepare
from workloads.engine.pretrained.adapter import add_adapter
from workloads.llm.config import LlmConfig
from workloads.llm.model import _kind as kind_of


def build(config: LlmConfig, fields: Fields) -> FakeStep:
    """The model with its fused head and its adapter, and a micro-batch of full rows."""
    from trl.trainer.utils import add_fused_lm_head

    model = fake_model(config, fields, kind_of)
    if config.train.fused_cross_entropy:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    rows = torch.zeros(config.train.per_device_batch_size, config.data.max_length, dtype=torch.long)
    fused = {"fused_lm_head": True} if config.train.fused_cross_entropy else {}

    def loss(model: nn.Module) -> Tensor:
        output = model(input_ids=rows, labels=rows, use_cache=False, **fused)
        value: Tensor = output.loss
        return value

    return FakeStep(prepare(config, model, lambda base: add_adapter(base, config.adapter)), loss)
