"""The step itself: states, forward and backward pass of a workload's own module, in bytes."""

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from workloads.config.sections import Profile
from workloads.engine.fake_step.card import FLASH, as_on_a_card
from workloads.engine.fake_step.quantised import QuantisedLinear, quantise
from workloads.engine.fake_step.sharded import mesh_of, shard, storages_watched
from workloads.engine.fake_step.trace import MemoryTrace, Peak
from workloads.engine.pretrained.files import compute_dtype, weights_dtype
from workloads.engine.pretrained.load import KindOf
from workloads.plan.gpu_memory import beside_a_step, job_of
from workloads.plan.shapes import from_fields

Fields = Mapping[str, Any]
# bitsandbytes: numbers that share a scale, and how many a parameter has to have for it.
_BLOCK_8BIT, _SMALL_8BIT = 256, 4096


@dataclass(frozen=True)
class FakeStep:
    """What a workload trains: a module of its own, and the loss of one micro-batch."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]


Builder = Callable[[Any, Fields], FakeStep]


@dataclass(frozen=True)
class MeasuredStep:
    """Bytes of parameters and optimizer states, of the highest moment, and what came and went.

    beside: what the formulas add for ZeRO, since DeepSpeed needs real tensors; it is in none of
    the others.
    """

    states: int
    peak: Peak
    peaks: Mapping[str, int]
    events: list[tuple[int, int]]
    beside: int = 0

    @property
    def allocated(self) -> int:
        """Bytes of the highest moment."""
        return self.peak.bytes + self.beside


def fake_model(config: Profile, fields: Fields, kind_of: KindOf) -> PreTrainedModel:
    """transformers' model of these config.json fields in the profile's dtypes, without weights.

    For a builder, under the fake tensors of `measure`.
    """
    own = AutoConfig.for_model(**fields)
    own.use_cache = False
    attention = "eager" if config.model.attention == "eager" else FLASH
    with no_init_weights():
        model: PreTrainedModel = kind_of(own).factory.from_config(
            own, dtype=weights_dtype(config.train, config.adapter), attn_implementation=attention
        )
    model.tie_weights()
    return model


def prepare(config: Profile, model: Any, add_adapter: Callable[[Any], nn.Module]) -> nn.Module:
    """A model as its trainer prepares it: quantised base, adapter, checkpointing."""
    if config.adapter.method == "qlora":
        quantise(model, config.adapter, compute_dtype(config.train), model.get_output_embeddings())
    wrapped = model
    if config.adapter.method != "full":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        wrapped = add_adapter(model)
    for module in wrapped.modules():
        if isinstance(getattr(module, "base_layer", None), QuantisedLinear):
            module.cast_input_dtype_enabled = False
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.needs_input_gradients:
        model.enable_input_require_grads()
    return wrapped


def measure(config: Profile, fields: Fields, build: Builder, world: int = 1) -> MeasuredStep:
    """Run one step of a profile on fake tensors and count what a real one would allocate on a card.

    fields: of the model's config.json. world: ranks, of which one is measured.
    """
    trace = MemoryTrace()
    strategy = config.strategy(world)
    is_zero = strategy in ("zero2", "zero3")
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(mesh_of(config, world))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for context in (as_on_a_card(), storages_watched(trace), trace):
            stack.enter_context(context)
        step = build(config, fields)
        model = step.model.train()
        if mesh is not None:
            shard(model, config, mesh)
        if is_zero:
            model.to(compute_dtype(config.train))
        gc.collect()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if is_zero:
            for parameter in trained:
                # Copied into a bucket, and from there to the host.
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        else:
            _states = _kept(config, model, trained, world)
        gc.collect()
        states = trace.live
        trace.start()
        trace.enter("forward")
        compute = compute_dtype(config.train)
        # ZeRO's weights have the compute type themselves.
        is_mixed = compute != torch.float32 and not is_zero
        with torch.autocast("cpu", compute, enabled=is_mixed):
            loss = step.loss(model)
        trace.enter("backward")
        loss.backward()
        trace.enter("optimizer")
    beside = 0
    if is_zero:
        gpus = world // config.parallel.nodes
        beside = beside_a_step(job_of(config, from_fields(fields), gpus))
    return MeasuredStep(states, trace.peak, dict(trace.peaks), trace.events, beside)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _kept(
    config: Profile, model: nn.Module, trained: list[nn.Parameter], world: int
) -> list[list[Tensor]]:
    """The optimizer's moments, DDP's buckets and a frozen reference; gradients too, where they are
    accumulated."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    kept = [_moments(config, parameter, parameter in tables) for parameter in trained]
    if config.strategy(world) == "ddp" and world > 1:
        kept.append([torch.empty_like(parameter) for parameter in trained])
    if config.has_reference:
        # Of all weights in the compute type, or of the adapter, which stands on the same base.
        is_full = config.adapter.method == "full"
        copied = list(model.parameters()) if is_full else trained
        kind = compute_dtype(config.train) if is_full else None
        kept.append([torch.empty_like(parameter, dtype=kind) for parameter in copied])
    if config.accumulation_steps(world) > 1:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
    return kept


def _moments(config: Profile, parameter: Tensor, is_table: bool) -> list[Tensor]:
    """Two moments of a parameter, of this rank's part where it is sharded; the 8-bit optimizer
    keeps those of tables and small ones wide."""
    if isinstance(parameter, DTensor):
        parameter = parameter.to_local()
    if config.optim.optimizer == "adamw" or is_table or parameter.numel() < _SMALL_8BIT:
        return [torch.empty_like(parameter), torch.empty_like(parameter)]
    blocks = -(-parameter.numel() // _BLOCK_8BIT)
    kinds = ((parameter.numel(), torch.uint8), (blocks, torch.float32))
    return [torch.empty(size, dtype=kind) for size, kind in kinds for _ in range(2)]
