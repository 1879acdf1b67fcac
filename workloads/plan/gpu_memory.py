"""What one GPU holds: states that stay, and what comes and goes through a step.

Peaks are looked for at five moments, because gradients grow while activations go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workloads.config.merge import leaves
from workloads.config.sections import Profile
from workloads.plan import activations
from workloads.plan.activations import Work
from workloads.plan.shapes import Linear, ModelShape

GIB = 1 << 30
# The 8-bit optimizer keeps one byte a number and an fp32 scale for each block of 256; the states of
# an embedding stay in fp32.
_STATE_8BIT = 1 + 4 / 256
# nf4 keeps a scale for every 64 weights: fp32, or one byte and an fp32 number for 256 of those.
_NF4, _NF4_DOUBLE = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's own defaults for its buckets and for what ZeRO-3 keeps gathered, in numbers.
_ZERO_BUCKET, _ZERO_LIVE = 500_000_000, 1_000_000_000
# What a row holds where no setting says: the prompt and actions of a robot policy, or anything.
_VLA_TEXT, _USUAL_LENGTH = 64, 1024
# Numbers of an action where no mask says how many: seven joints and a gripper.
_VLA_ACTION = 8


@dataclass(frozen=True)
class Job:
    """A profile on its ranks: `work` of one of them, and how they share."""

    config: Profile
    work: Work
    strategy: str
    world: int
    ranks_per_node: int
    accumulates: bool

    @property
    def shards(self) -> int:
        """Into how many parts the trained states are cut."""
        return self.world if self.strategy in ("fsdp2", "zero3") else 1

    @property
    def offloads(self) -> bool:
        """ZeRO keeps the optimizer on the host, as `engine/arguments.py` asks it to."""
        return self.strategy in ("zero2", "zero3")

    @property
    def trained(self) -> int:
        """Trained numbers, all ranks together."""
        work, head = self.work, _oft_head(self.config, self.work.shape)
        if work.full:
            return work.shape.parameters + head
        return sum(one.adapter_parameters(work.rank) for one in work.adapted) + head


def job_of(config: Profile, shape: ModelShape, gpus: int | None) -> Job:
    """The job that a profile makes on nodes with `gpus` GPUs each (None: one)."""
    per_node = config.ranks_per_node(1 if gpus is None else gpus)
    world = per_node * config.parallel.nodes
    strategy = config.strategy(world)
    step = config.train.per_device_batch_size * world
    accumulates = (config.train.global_batch_size or step) > step
    return Job(config, _work(config, shape, strategy), strategy, world, per_node, accumulates)


def _work(config: Profile, shape: ModelShape, strategy: str) -> Work:
    train, adapter = config.train, config.adapter
    shape = _seen(config, shape)
    compute = 4 if train.precision == "fp32" else 2
    full = adapter.method == "full"
    master = 4 if train.master_weights == "fp32" or strategy == "fsdp2" else compute
    # FSDP2 and ZeRO hand the embedding to the forward pass in the compute type; elsewhere the
    # stream has the type of the stored embedding.
    stored = compute if strategy in ("zero2", "zero3") else master
    fp32_stream = full and strategy not in ("fsdp2", "zero2", "zero3")
    return Work(
        shape=shape,
        rows=train.per_device_batch_size,
        length=row_length(config, shape),
        compute=compute,
        stored=stored,
        residual=stored if fp32_stream else compute,
        full=full,
        adapted=() if full else shape.adapted(adapter.targets),
        rank=adapter.r,
        dropout=adapter.dropout > 0,
        checkpointing=train.gradient_checkpointing,
        fused_head=train.fused_cross_entropy,
        eager=config.model.attention == "eager",
    )


def row_length(config: Profile, shape: ModelShape) -> int:
    """Tokens of the longest row: `data.max_length`, or prompt and answer, or what is usual."""
    settings = leaves(config)
    if isinstance(settings.get("data.max_length"), int):
        return int(settings["data.max_length"])
    parts = [_named(settings, "max_prompt_length"), _named(settings, "max_completion_length")]
    if any(parts):
        return sum(parts)
    if not shape.image_tokens:
        return _USUAL_LENGTH
    return shape.image_tokens + _VLA_TEXT + _slots(settings)


def _slots(settings: Mapping[str, Any]) -> int:
    """Positions of an OFT head's actions, and of the robot's state before them."""
    if settings.get("action_head.kind") != "oft":
        return 0
    slots = int(settings["action_head.chunk"]) * _action_size(settings)
    return slots + bool(settings["action_head.proprio"])


def _action_size(settings: Mapping[str, Any]) -> int:
    return len(settings.get("data.action_mask") or ()) or _VLA_ACTION


def _oft_head(config: Profile, shape: ModelShape) -> int:
    """Numbers of an OFT head and of what projects the robot's state; trained whatever the rest is.

    The head is a linear layer on all slots of a step, two residual blocks, a linear layer, and a
    norm before each.
    """
    settings = leaves(config)
    if settings.get("action_head.kind") != "oft":
        return 0
    hidden, size = shape.hidden, _action_size(settings)
    square = hidden * hidden + hidden
    state = square + size * hidden + hidden if settings["action_head.proprio"] else 0
    if settings["action_head.decode"] != "l1":
        return state
    first, last = size * hidden * (hidden + 2) + hidden, size * (hidden + 1) + 2 * hidden
    return first + 2 * (square + 2 * hidden) + last + state


def _seen(config: Profile, shape: ModelShape) -> ModelShape:
    """A robot policy's shape by its cameras: towers see the pictures of a row one by one, and the
    patches of all of them stand in the sequence."""
    cameras = len(leaves(config).get("data.cameras") or ()) if shape.image_tokens else 0
    if cameras < 2:
        return shape
    towers = tuple(replace(one, patches=cameras * one.patches) for one in shape.towers)
    return replace(shape, towers=towers, image_tokens=cameras * shape.image_tokens)


def _named(settings: Mapping[str, Any], name: str) -> int:
    found = [value for key, value in settings.items() if key.rsplit(".", 1)[-1] == name]
    return next((value for value in found if isinstance(value, int)), 0)


def states(job: Job) -> dict[str, int]:
    """Bytes that stay through a step, by part; `gradients` are those after the backward pass."""
    parts = _full_states(job) if job.work.full else _adapter_job_states(job)
    if job.strategy == "ddp" and job.world > 1:
        # Gradients are reduced in buckets that are copies of them.
        parts["communication"] = job.trained * (job.work.stored if job.work.full else 4)
    if job.offloads:
        bucket = min(job.trained, _ZERO_BUCKET) * job.work.compute
        parts["communication"] = 2 * bucket
    return parts


def _full_states(job: Job) -> dict[str, int]:
    work, count = job.work, job.trained
    own = count * work.stored // job.shards
    parts = {"master_weights" if work.stored > work.compute else "weights": own}
    if job.offloads:
        return parts
    parts["gradients"] = own
    parts["optimizer_states"] = int(_moments(job, count, work.stored)) // job.shards
    return parts


def _moments(job: Job, count: int, stored: int) -> float:
    if job.config.optim.optimizer == "adamw":
        return 2.0 * stored * count
    shape = job.work.shape
    table = shape.vocab * shape.hidden if job.work.full else 0
    return 2 * (_STATE_8BIT * (count - table) + 4 * table)


def _adapter_job_states(job: Job) -> dict[str, int]:
    work, count = job.work, job.trained
    shape, own = work.shape, work.adapter_bytes
    moments = 0 if job.offloads else _moments(job, count, own)
    parts = {"adapter_states": int(2 * own * count + moments) // job.shards}
    if job.config.adapter.method == "lora":
        return parts | {"weights": shape.parameters * work.compute // job.shards}
    rest = shape.parameters - shape.linear_parameters
    quantised = int(_quantised_bits(job.config, shape.linears))
    return parts | {
        "weights": rest * work.compute // job.shards,
        "quantised_base": quantised // job.shards,
    }


def _quantised_bits(config: Profile, linears: tuple[Linear, ...]) -> float:
    """Bytes of the quantised matrices; int8 keeps an fp32 scale for each of their rows."""
    count = sum(one.parameters for one in linears)
    if config.adapter.quantisation == "int8":
        return count + 4 * sum(one.outputs * one.count for one in linears)
    return count * (_NF4_DOUBLE if config.adapter.double_quantisation else _NF4)


@dataclass(frozen=True)
class Moment:
    """A moment of a step and the bytes it holds besides the states, by part."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def moments(job: Job) -> list[Moment]:
    """The moments at which memory can be at its highest."""
    work = job.work
    kept = activations.stack(work)
    head = activations.head_input(work)
    copies = working_copies(job)
    gradients = states(job).get("gradients", 0)
    before = _accumulated(job, gradients)
    first_layer = activations.layer_backward(work) + work.tokens * activations.layer(work)
    first_layer += _dequantised(job)
    top = kept + activations.recomputed(work) + activations.layer_backward(work)
    grown = before if job.accumulates else gradients - _first_gradients(job)
    return [
        Moment("end of the forward pass", {
            "weights": copies.forward, "activations": kept + head, "gradients": before,
            "logits": activations.logits_forward(work)}),
        Moment("start of the backward pass", {
            "weights": copies.backward, "activations": kept + head, "gradients": before,
            "logits": activations.logits_backward(work)}),
        Moment("backward pass of the last layer", {
            "weights": copies.backward, "activations": top + _dequantised(job),
            "gradients": before + _head_gradient(job), "communication": _in_flight(job)}),
        Moment("backward pass of the first layer", {
            "weights": copies.end, "activations": first_layer, "gradients": max(grown, 0),
            "communication": _in_flight(job)}),
        Moment("end of the backward pass", {
            "weights": copies.end, "gradients": max(gradients, before) + _tied_gradients(job),
            "communication": _in_flight(job)}),
    ]  # fmt: skip


@dataclass(frozen=True)
class Copies:
    """Bytes of weights in the compute type, made for a step: up to the logits, in the backward pass
    of the last layer, and at its end."""

    forward: int
    backward: int
    end: int


def working_copies(job: Job) -> Copies:
    """Copies that autocast casts, or that FSDP2 or ZeRO-3 gather."""
    work, shape = job.work, job.work.shape
    size, layer = work.compute, work.compute * shape.layer_parameters
    if job.strategy == "fsdp2":
        few = size * shape.embedding + 2 * layer
        # `engine/arguments.py` keeps all gathered where the head is fused.
        all_of_it = max(few, size * shape.parameters) if work.fused_head else few
        return Copies(all_of_it, all_of_it, few)
    if job.strategy == "zero3":
        live = size * min(shape.parameters, _ZERO_LIVE)
        return Copies(live, live, live)
    if not (work.full and work.casts):
        return Copies(0, 0, 0)
    head = 0 if work.fused_head else shape.vocab * shape.hidden
    cast = size * (shape.linear_parameters + head)
    # Autocast forgets its copies when the forward pass ends; recomputed layers make their own.
    return Copies(cast, layer + size * head if work.checkpointing else cast, layer)


def _table(job: Job) -> int:
    return job.work.shape.vocab * job.work.shape.hidden


def _accumulated(job: Job, gradients: int) -> int:
    """Gradients of earlier micro-batches; FSDP2 reduces after the last one and keeps them whole."""
    if not job.accumulates or job.offloads:
        return 0
    if job.strategy == "fsdp2":
        return job.trained * job.work.compute
    return gradients


def _head_gradient(job: Job) -> int:
    if not job.work.full or job.offloads:
        return 0
    size = job.work.compute if job.strategy == "fsdp2" else job.work.stored
    return _table(job) * size


def _first_gradients(job: Job) -> int:
    """Gradients that come last: those of the first layer and of the input embedding."""
    shape = job.work.shape
    if not job.work.full:
        return 0
    late = shape.layer_parameters + (0 if shape.tied else _table(job))
    return late * job.work.stored // job.shards


def _tied_gradients(job: Job) -> int:
    """A tied table's two gradients beside their sum; FSDP2 holds whole tables until it ends."""
    work = job.work
    if not work.full or job.offloads:
        return 0
    if job.strategy == "fsdp2":
        return work.compute * _table(job) * (3 if work.shape.tied else 2)
    return 2 * work.stored * _table(job) if work.shape.tied else 0


def _in_flight(job: Job) -> int:
    """Layers on their way: one being gathered, two with their gradients being reduced."""
    if job.strategy != "fsdp2":
        return 0
    layer = job.work.compute * job.work.shape.layer_parameters
    return 2 * layer + (2 * layer if job.work.full else 0)


def _dequantised(job: Job) -> int:
    """A quantised matrix is multiplied in the compute type, one at a time."""
    if job.config.adapter.method != "qlora":
        return 0
    return job.work.compute * max(one.inputs * one.outputs for one in job.work.shape.linears)


def framework(job: Job, moving: int) -> int:
    """CUDA's context and libraries, NCCL's buffers, and what the allocator cannot use."""
    context = int(0.5 * GIB)
    network = int(0.35 * GIB) if job.world > 1 else 0
    return context + network + int(0.03 * moving)
