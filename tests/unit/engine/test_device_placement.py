"""Every tensor of a step is where the model is: real widths on the `meta` device, without weights.

A tensor that code makes on the host by mistake is invisible on a CPU, and fails on the first GPU.
Here the model is on `meta`, another device than the host's, and every operation is watched.
"""

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

from tests.support.planning import OFFLINE
from workloads.catalogue import WORKLOADS
from workloads.config.merge import resolve
from workloads.engine.fake_step.card import as_on_a_card
from workloads.plan.known_shapes import fields_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]


class DeviceWatch(TorchDispatchMode):
    """Notes operations whose tensors lie on several devices; a number of no dimension may."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.dim()}
        if len(places) > 1 and "copy" not in str(function):
            shapes = [(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]
            self.mixed.append(f"{function}: {shapes}")
        return function(*args, **(kwargs or {}))


def of_two_layers(fields: dict[str, Any]) -> dict[str, Any]:
    """A model's config.json with two layers of its language model, which are all alike."""
    inner = fields.get("text_config")
    if inner is not None:
        return {**fields, "text_config": of_two_layers(inner)}
    return {**fields, "num_hidden_layers": 2}


def step_on_meta(config: Any) -> tuple[torch.nn.Module, DeviceWatch]:
    """The model after forward pass, loss, backward pass and optimizer, nothing of it computed."""
    module, _, name = WORKLOADS[config.workload].fake_step.partition(":")
    build = getattr(importlib.import_module(module), name)
    fields, _ = fields_of(config.model, OFFLINE)
    # Autocast knows no `meta`: the step is in the type of the weights throughout. transformers must
    # not look into the values of tensors, as where it is traced.
    plain = mock.patch.object(torch, "is_autocast_enabled", lambda *kind: False)
    traced = mock.patch.object(masking_utils, "is_tracing", lambda *tensors: True)
    with as_on_a_card(), plain, traced, torch.device("meta"):
        step = build(config, of_two_layers(dict(fields)))
        model = step.model.train()
        with DeviceWatch() as watch:
            step.loss(model).backward()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
            optimizer.step()
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    assert {state.device.type for state in states} == {"meta"}
    return model, watch


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("llm-4090", "train.precision=fp32"), id="llm-4090"),
        pytest.param(("vla",), id="vla"),
        pytest.param(("recipes/vla-oft",), id="vla-oft"),
        pytest.param(("grpo-h100",), id="grpo-h100"),
    ],
)
def test_a_step_at_its_real_width_stays_on_one_device(settings: tuple[str, ...]) -> None:
    name, *words = settings
    config, _ = resolve(ROOT / f"profiles/{name}.yaml", {}, words)
    model, watch = step_on_meta(config)
    assert watch.mixed == []
    assert watch.count > 400
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with_gradient = [parameter for parameter in trained if parameter.grad is not None]
    assert len(with_gradient) >= 0.9 * len(trained) > 0
    for parameter in with_gradient:
        gradient = parameter.grad
        assert gradient is not None
        assert (gradient.device, gradient.dtype) == (parameter.device, parameter.dtype)


def test_a_tensor_on_the_host_is_noticed() -> None:
    table = torch.empty(8, 4, device="meta")
    with DeviceWatch() as watch:
        torch.nn.functional.embedding(torch.zeros(3, dtype=torch.long), table)
    assert len(watch.mixed) == 1 and "embedding" in watch.mixed[0]
