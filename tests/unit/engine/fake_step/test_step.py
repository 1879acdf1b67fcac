"""The plan's formulas against one step on fake tensors, at the shapes that people train."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.plan_exact import CASES, Case
from tests.support.planning import LLAMA_1B, OFFLINE, profile
from workloads.catalogue import WORKLOADS
from workloads.engine.fake_step.step import FakeStep, MeasuredStep, measure
from workloads.engine.fake_step.trace import MemoryTrace
from workloads.plan.estimate import Breakdown, estimate
from workloads.plan.known_shapes import fields_of
from workloads.plan.replay import reserved_bytes

pytestmark = pytest.mark.unit

CHECKPOINTING = "train.gradient_checkpointing=true"


def both(config: Any, gpus: int) -> tuple[Breakdown, MeasuredStep]:
    module, _, name = WORKLOADS[config.workload].fake_step.partition(":")
    fields, _ = fields_of(config.model, OFFLINE)
    planned = estimate(config, gpus, OFFLINE)
    build = getattr(importlib.import_module(module), name)
    return planned, measure(config, fields, build, planned.world_size)


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        pytest.param((CHECKPOINTING, "train.per_device_batch_size=4"), 1, id="full"),
        pytest.param(
            ("adapter.method=lora", "model.attention=eager", "data.max_length=2048", CHECKPOINTING),
            1,
            id="LoRA, eager",
        ),
        pytest.param(
            ("adapter.method=qlora", "adapter.targets=[all-linear]", CHECKPOINTING),
            1,
            id="QLoRA, all-linear",
            marks=pytest.mark.slow,
        ),
        pytest.param((CHECKPOINTING, "parallel.strategy=zero3"), 4, id="ZeRO-3"),
    ],
)
def test_formulas_agree_with_a_fake_step(
    settings: tuple[str, ...], gpus: int, tmp_path: Path
) -> None:
    planned, step = both(profile(tmp_path, *settings, model=LLAMA_1B), gpus)
    assert planned.allocated == pytest.approx(step.allocated, rel=0.03)
    # An allocator that gives nothing back has at least the highest moment, and little more.
    assert step.peak.bytes <= reserved_bytes(step.events) < 1.3 * step.peak.bytes
    assert (step.beside != 0) is (planned.strategy == "zero3")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_formulas_agree_with_a_fake_step_of_a_real_shape(case: Case, tmp_path: Path) -> None:
    """The cases of docs/benchmarks/plan-exact.md: profiles, families, long rows, several GPUs."""
    planned, step = both(case.config(tmp_path), case.gpus)
    assert planned.allocated == pytest.approx(step.allocated, rel=0.03)


def test_the_trace_counts_what_lives() -> None:
    with MemoryTrace() as trace:
        first = torch.empty(1000, dtype=torch.float32)
        assert trace.live == 4096  # in grains of 512 bytes
        view = first[:10]
        assert trace.live == 4096
        second = first + 1
        assert trace.live == 8192
        del first, view
        assert trace.live == 4096
        del second
    assert (trace.live, trace.peak.bytes) == (0, 8192)
    assert reserved_bytes(trace.events, expandable=False) == 2 << 20


def test_a_step_of_one_layer(tmp_path: Path) -> None:
    """A linear layer with its bias and two moments of each, 1,024 rows, and its output."""

    def build(config: Any, fields: Any) -> FakeStep:
        inputs = torch.empty(1024, 256)
        return FakeStep(nn.Linear(256, 512), lambda model: model(inputs).sum())

    config = profile(tmp_path, "train.precision=fp32")
    step = measure(config, {}, build)
    weights = 4 * (256 * 512 + 512)
    assert step.states == 3 * weights + 1024 * 256 * 4
    assert step.peak.phase == "forward"
    assert step.peak.bytes == step.states + 4 * 1024 * 512 + 512
    assert not torch.distributed.is_initialized()
