"""One step of the grpo workload on fake tensors: the loss phase; see `workloads.engine.fake_step`.

Completions are written before it by another engine, whose memory the step does not see. Rows are
text alone: how a vision tower cuts images up depends on values, which fake tensors do not have. A
frozen tower keeps nothing for the backward pass.
"""

import torch
from torch import Tensor, nn

from workloads.engine.fake_step.step import FakeStep, Fields, fake_model, prepare
from workloads.engine.pretrained.adapter import add_adapter
from workloads.grpo.config import GrpoConfig
from workloads.grpo.model import kind_of


def build(config: GrpoConfig, fields: Fields) -> FakeStep:
    """The model with its fused head and its adapter, and a micro-batch of full rows."""
    from trl.trainer.utils import add_fused_lm_head

    model = fake_model(config, fields, kind_of)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompt, answer = config.grpo.max_prompt_length, config.grpo.max_completion_length
    rows = config.train.per_device_batch_size
    tokens = torch.zeros(rows, prompt + answer, dtype=torch.long)

    def loss(model: nn.Module) -> Tensor:
        # Prompts have no labels.
        output = model(input_ids=tokens, labels=tokens, fused_lm_head=True)
        value: Tensor = output.log_probs[:, -answer:].mean()
        return value

    return FakeStep(prepare(config, model, lambda base: add_adapter(base, config.adapter)), loss)
