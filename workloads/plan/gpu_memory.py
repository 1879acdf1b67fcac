"""Memory of one GPU: states that stay, and memory that a step allocates and frees.

The peak is the highest of five moments, because gradients grow while activations shrink.
"""

from dataclasses import astuple, dataclass, replace

from workloads.config.sections import Profile, ZeroField
from workloads.device import GIB
from workloads.plan import activations, head
from workloads.plan.shapes import Linear, ModelShape
from workloads.plan.work import Work

# The 8-bit optimizer keeps one byte a number and an fp32 scale for each block of 256; the states of
# an embedding stay in fp32.
STATE_8BIT = 1 + 4 / 256
# nf4 keeps a scale for every 64 weights: fp32, or one byte and an fp32 number for 256 of those.
_NF4, _NF4_DOUBLE = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
# DeepSpeed's defaults of bucket sizes and of parameters that ZeRO-3 keeps gathered, in numbers.
_ZERO_BUCKET, _ZERO_LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU by part.

    weights: frozen ones and copies in the compute type; master_weights: trained ones kept in a
    wider type; adapter_states: adapters with their gradients and moments; communication: buckets of
    DDP and ZeRO, layers in transfer under FSDP2; framework: CUDA, libraries, fragmentation.
    """

    weights: int = 0
    master_weights: int = 0
    gradients: int = 0
    optimizer_states: int = 0
    adapter_states: int = 0
    quantised_base: int = 0
    activations: int = 0
    logits: int = 0
    communication: int = 0
    framework: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __add__(self, other: "GpuMemory") -> "GpuMemory":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return GpuMemory(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class Moment:
    """A moment of a step and a GPU's bytes at it."""

    name: str
    memory: GpuMemory


@dataclass(frozen=True)
class PlannedJob:
    """A profile on its ranks: `work` of one of them, and how they share."""

    config: Profile
    work: Work
    strategy: str
    world: int
    ranks_per_node: int
    accumulates: bool

    @property
    def shards(self) -> int:
        """Number of shards of the trained states."""
        return self.world if self.strategy in ("fsdp2", "zero3") else 1

    @property
    def offloads(self) -> bool:
        """Whether ZeRO keeps the optimizer on the host; see `engine/training/arguments.py`."""
        return self.strategy in ("zero2", "zero3")

    @property
    def frozen(self) -> int:
        """Numbers that get no gradient even where all weights are trained: a head of its own whose
        logits nobody asks for is one of them."""
        shape = self.work.shape
        return shape.frozen + (0 if self.work.scored or shape.tied else shape.vocab * shape.hidden)

    @property
    def trained(self) -> int:
        """Numbers that get gradients, all ranks together."""
        work, extra = self.work, self.config.extra_parameters(self.work.shape)
        if work.full:
            return work.shape.parameters - self.frozen + extra
        adapters = sum(linear.adapter_parameters(work.rank) for linear in work.adapted)
        return adapters + self.saved + extra

    @property
    def saved(self) -> int:
        """Numbers of the modules that are trained whole beside an adapter."""
        return sum(linear.parameters for linear in self.work.saved)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all that is trained beside a frozen base, all ranks together."""
        own = self.work.adapter_bytes * (self.trained - self.saved)
        return own + self.work.compute * self.saved


def job_of(config: Profile, shape: ModelShape, gpus: int | None) -> PlannedJob:
    """The job of a profile on nodes with `gpus` GPUs each (None: one)."""
    per_node = config.ranks_per_node(1 if gpus is None else gpus)
    world = per_node * config.parallel.nodes
    strategy = config.strategy(world)
    step = config.train.per_device_batch_size * world
    accumulates = (config.train.global_batch_size or step) > step
    return PlannedJob(
        config, _work(config, shape, strategy), strategy, world, per_node, accumulates
    )


def _work(config: Profile, shape: ModelShape, strategy: str) -> Work:
    train, adapter = config.train, config.adapter
    shape = config.seen_shape(shape)
    compute = 4 if train.precision == "fp32" else 2
    full = adapter.method == "full"
    master = 4 if train.master_weights == "fp32" or strategy == "fsdp2" else compute
    # FSDP2 and ZeRO hand the embedding to the forward pass in the compute type; elsewhere the
    # stream has the type of the stored embedding. DeepSpeed casts adapters too.
    is_zero = strategy in ("zero2", "zero3")
    stored = compute if is_zero else master
    fp32_stream = full and strategy != "fsdp2" and not is_zero
    residual = stored if fp32_stream else compute
    if activations.widens(shape, adapter.method == "qlora") and not is_zero:
        residual = 4
    return Work(
        shape=shape,
        rows=train.per_device_batch_size,
        length=config.row_length(shape),
        scored=config.scored_tokens(shape),
        compute=compute,
        stored=stored,
        residual=residual,
        full=full,
        adapted=() if full else shape.adapted(adapter.targets),
        saved=() if full else shape.trained_whole(adapter.modules_to_save),
        rank=adapter.r,
        quantised=adapter.method == "qlora",
        holds_inputs=adapter.method == "qlora" and adapter.quantisation == "int8",
        dequantised=compute,
        frozen=compute,
        handed=compute if strategy == "fsdp2" else stored,
        dropout=adapter.dropout > 0,
        adapter_bytes=compute if is_zero else 4,
        checkpointing=train.gradient_checkpointing,
        compiled=train.compile,
        offloaded=train.activation_offloading,
        fused_head=config.fuses_head,
        eager=config.model.attention == "eager",
        fp16=train.precision == "fp16",
        sequences=config.sequences,
    )


def states(job: PlannedJob) -> GpuMemory:
    """Bytes that stay through a step; `gradients` are those after the backward pass."""
    found = _full_states(job) if job.work.full else _adapter_job_states(job)
    found = replace(found, weights=found.weights + _reference(job))
    if job.strategy == "ddp" and job.world > 1:
        # Gradients are reduced in buckets that are copies of them.
        bucket = job.trained * job.work.stored if job.work.full else job.adapter_bytes
        return replace(found, communication=bucket)
    if job.offloads:
        numbers = _zero_number(job, "reduce_bucket_size", _ZERO_BUCKET)
        bucket = min(job.trained, numbers) * job.work.compute
        # Two buffers: one is reduced while the other fills (overlap_comm).
        return replace(found, communication=2 * bucket)
    return found


def _zero_number(job: PlannedJob, name: ZeroField, usual: int) -> int:
    """A value of `parallel.zero`, else DeepSpeed's default; auto follows the model and is less."""
    value = job.config.parallel.zero.get(name, usual)
    return usual if isinstance(value, str) else value


def _reference(job: PlannedJob) -> int:
    """Bytes of the reference: a frozen copy of all weights, or of an adapter over the base."""
    if not job.config.has_reference:
        return 0
    if not job.work.full:
        return job.adapter_bytes // job.shards
    return (job.trained + job.frozen) * job.work.compute // job.shards


def _full_states(job: PlannedJob) -> GpuMemory:
    work, count = job.work, job.trained
    held = (count + job.frozen) * work.stored // job.shards
    wide = work.stored > work.compute
    found = GpuMemory(master_weights=held) if wide else GpuMemory(weights=held)
    if job.offloads:
        return found
    gradients = count * work.stored // job.shards
    moments = int(_moments(job, work.stored * count)) // job.shards
    return replace(found, gradients=gradients, optimizer_states=moments)


def _moments(job: PlannedJob, trained: int) -> float:
    """Bytes of AdamW's moments of weights of so many bytes."""
    if job.config.optim.optimizer == "adamw":
        return 2.0 * trained
    # transformers has bitsandbytes keep the moments of an embedding in fp32.
    table = _table(job) if job.work.trains_embedding else 0
    return 2 * (STATE_8BIT * (job.trained - table) + 4 * table)


def _adapter_job_states(job: PlannedJob) -> GpuMemory:
    work, shape = job.work, job.work.shape
    moments = 0 if job.offloads else _moments(job, job.adapter_bytes)
    # The weights and their gradients have the same type.
    adapter = int(2 * job.adapter_bytes + moments) // job.shards
    if job.config.adapter.method == "lora":
        weights = shape.parameters * work.frozen // job.shards
        return GpuMemory(weights=weights, adapter_states=adapter)
    rest = shape.parameters - shape.linear_parameters
    quantised = int(_quantised_bits(job.config, shape.linears))
    return GpuMemory(
        weights=rest * work.frozen // job.shards,
        quantised_base=quantised // job.shards,
        adapter_states=adapter,
    )


def _quantised_bits(config: Profile, linears: tuple[Linear, ...]) -> float:
    """Bytes of the quantised matrices; int8 keeps an fp32 scale for each of their rows."""
    count = sum(linear.parameters for linear in linears)
    if config.adapter.quantisation == "int8":
        return count + 4 * sum(linear.outputs * linear.count for linear in linears)
    return count * (_NF4_DOUBLE if config.adapter.double_quantisation else _NF4)


def moments(job: PlannedJob) -> list[Moment]:
    """The moments at which memory can be at its highest, in the order of a step."""
    work, after = job.work, states(job)
    # Gradients of adapters are counted with their states.
    adapter = 0 if work.full else job.adapter_bytes // job.shards
    through = activations.images(work) + activations.held_inputs(work)
    stay = replace(after, gradients=0, activations=through)
    if not job.accumulates:
        stay = replace(stay, adapter_states=after.adapter_states - adapter)
    else:
        adapter = 0  # left from the micro-batch before
    kept = activations.stack(work) + head.inputs(work)
    copies, in_flight = working_copies(job), _in_flight(job)
    before, logits = _accumulated(job, after.gradients), head.output_logits(work)
    going_back = activations.layer_backward(work)
    # Without checkpointing the last layer's part of the stack is its own activations.
    rest = 0 if work.checkpointing else activations.kept_layer(work)
    done = _done_in_last(job)
    # Checkpointing keeps the stream before the first layer, too.
    stream = activations.kept_layer(work) if work.checkpointing and not work.offloaded else 0
    # Gradients appear from the last layer to the first: by then all but the first layer's.
    grown = before if job.accumulates else after.gradients - _first_gradients(job)
    held = logits if work.keeps_logits else 0
    # Where no logits are made, what the last layer makes on its way is the most.
    last = 0 if work.scored else activations.layer_forward(work)
    comes = {
        "forward pass of the last layer": GpuMemory(
            weights=copies.forward, activations=activations.stack(work) + last, gradients=before
        ),
        "end of the forward pass": GpuMemory(
            weights=copies.forward,
            activations=kept,
            gradients=before,
            logits=head.logits_forward(work),
        ),
        "weights gathered again": GpuMemory(
            weights=copies.again, activations=kept, gradients=before, logits=held
        ),
        "start of the backward pass": GpuMemory(
            weights=copies.backward,
            activations=kept,
            gradients=before,
            logits=head.logits_backward(work),
        ),
        "backward pass of the last layer": GpuMemory(
            weights=copies.backward - done.weights,
            activations=activations.stack(work) - rest + going_back,
            gradients=before + _head_gradient(job) + done.gradients,
            adapter_states=done.adapter_states,
            logits=held,
            communication=in_flight,
        ),
        "backward pass of the first layer": GpuMemory(
            weights=copies.first,
            activations=activations.mask(work) + stream + going_back,
            gradients=max(grown, 0),
            adapter_states=max(adapter - _late_gradients(job), 0),
            logits=held,
            communication=in_flight,
        ),
        "end of the backward pass": GpuMemory(adapter_states=adapter, logits=held)
        + _end(job, before, after.gradients),
    }
    if not copies.again:
        del comes["weights gathered again"]
    return [Moment(name, stay + memory) for name, memory in comes.items()]


@dataclass(frozen=True)
class Copies:
    """Bytes of weights in the compute type, made for a step: up to the logits, in the backward pass
    of the last layer and of the first one, and at its end; again: while FSDP2 gathers embedding and
    head once more, as one buffer and as the tables that it is copied into."""

    forward: int
    backward: int
    first: int
    end: int
    again: int = 0


def working_copies(job: PlannedJob) -> Copies:
    """Copies that autocast casts, or that FSDP2 or ZeRO-3 gather."""
    work, shape = job.work, job.work.shape
    size, layer = work.compute, work.compute * shape.layer_parameters
    if job.strategy == "fsdp2":
        if work.quantised:
            # Gathered weights stay quantised.
            layer = int(_quantised_bits(job.config, shape.decoder)) // shape.layers
        few = size * shape.embedding + 2 * layer
        if not job.config.keeps_gathered:
            return Copies(few, few, few, few, again=2 * size * shape.embedding)
        all_of_it = max(few, size * shape.parameters)
        return Copies(all_of_it, all_of_it, few, few)
    if job.strategy == "zero3":
        numbers = _zero_number(job, "stage3_max_live_parameters", _ZERO_LIVE)
        live = size * min(shape.parameters, numbers)
        return Copies(live, live, live, live)
    if not work.full and work.autocast and work.adapter_bytes > size:
        # Copies of adapters; without checkpointing layers hold them in the backward pass, too.
        cast = size * (job.trained - job.saved)
        return Copies(cast, 0 if work.checkpointing else cast, 0, 0)
    if not (work.full and work.casts):
        return Copies(0, 0, 0, 0)
    head = 0 if work.fused_head or not work.scored else shape.vocab * shape.hidden
    cast = size * (shape.linear_parameters - shape.frozen + head)
    # Autocast forgets its copies when the forward pass ends; recomputed layers make their own.
    last = layer + size * head if work.checkpointing else cast
    return Copies(cast, last, size * _waiting(work), layer)


def _end(job: PlannedJob, before: int, gradients: int) -> GpuMemory:
    """Gradients at the end of the backward pass, and what FSDP2 and ZeRO-3 have gathered by then.

    Whole gradients that FSDP2 has kept are larger than the shards that replace them. Its tables
    are gathered, and their gradients whole, until all layers are done.
    """
    work, shape = job.work, job.work.shape
    if job.strategy != "fsdp2" or not work.full:
        kept = max(gradients, before) + _tied_gradients(job)
        return GpuMemory(
            weights=working_copies(job).end, gradients=kept, communication=_in_flight(job)
        )
    layers = gradients - work.stored * shape.embedding // job.shards
    return GpuMemory(
        weights=work.compute * shape.embedding,
        gradients=max(layers, before) + _tied_gradients(job),
        communication=work.compute * shape.layer_parameters,
    )


def beside_a_step(job: PlannedJob) -> int:
    """Bytes that ZeRO adds to a step with whole weights and no optimizer: its buckets and gathered
    weights, less what other ranks hold of the weights; below 0 where that is more."""
    if not job.offloads:
        return 0
    unsharded = states(replace(job, strategy="zero2"))
    own = states(job)
    gathered = working_copies(job).forward if job.strategy == "zero3" else 0
    return own.communication + gathered + own.total - unsharded.total


def _table(job: PlannedJob) -> int:
    return job.work.shape.vocab * job.work.shape.hidden


def _accumulated(job: PlannedJob, gradients: int) -> int:
    """Gradients of earlier micro-batches; FSDP2 reduces after the last one and keeps them whole."""
    if not job.accumulates or job.offloads:
        return 0
    if job.strategy == "fsdp2":
        return job.trained * job.work.compute
    return gradients


def _head_gradient(job: PlannedJob) -> int:
    work = job.work
    if not work.trains_head or not work.scored or job.offloads:
        return 0
    is_stored = work.full and job.strategy != "fsdp2"
    return _table(job) * (work.stored if is_stored else work.compute)


def _done_in_last(job: PlannedJob) -> GpuMemory:
    """Gradients that the last layer has at its highest moment, and the autocast copies of weights
    that are gone by then."""
    work = job.work
    if job.accumulates or job.strategy not in ("single", "ddp"):
        return GpuMemory()
    if work.full:
        numbers = work.shape.layer_parameters - _waiting(work)
        copies = work.compute * numbers if work.casts else 0
        return GpuMemory(weights=copies, gradients=work.stored * numbers)
    waiting = activations.waiting(work)
    done = [linear for linear in work.adapted if linear.where in ("attention", "mlp")
            and linear not in waiting]  # fmt: skip
    numbers = sum(linear.adapter_parameters(work.rank) for linear in done) // work.shape.layers
    return GpuMemory(adapter_states=work.adapter_bytes * numbers)


def _late_gradients(job: PlannedJob) -> int:
    """Gradients beside a frozen base that come last: those of the first layer's adapters, and of an
    embedding that is trained whole."""
    work = job.work
    if work.full:
        return 0
    late = set(activations.waiting(work)).intersection(work.adapted)
    adapters = sum(linear.adapter_parameters(work.rank) for linear in late) // work.shape.layers
    has_table = work.trains_embedding and not work.shape.tied
    table = work.compute * _table(job) if has_table else 0
    return (work.adapter_bytes * adapters + table) // job.shards


def _first_gradients(job: PlannedJob) -> int:
    """Gradients that come last: those of the first layer and of the input embedding."""
    shape = job.work.shape
    if not job.work.full:
        return 0
    late = _waiting(job.work) + (0 if shape.tied else _table(job))
    return late * job.work.stored // job.shards


def _waiting(work: Work) -> int:
    """Numbers of the first layer's matrices that have no gradient at its highest moment."""
    return sum(linear.parameters for linear in activations.waiting(work)) // work.shape.layers


def _tied_gradients(job: PlannedJob) -> int:
    """A tied table's two gradients beside their sum; FSDP2 holds whole tables until it ends."""
    work = job.work
    if not work.trains_embedding or not work.scored or job.offloads:
        return 0
    if job.strategy == "fsdp2" and work.full:
        return work.compute * _table(job) * (3 if work.shape.tied else 2)
    size = work.stored if work.full else work.compute
    return 2 * size * _table(job) if work.shape.tied else 0


def _in_flight(job: PlannedJob) -> int:
    """Bytes of layers in transfer: one being gathered, two whose gradients are being reduced."""
    if job.strategy != "fsdp2":
        return 0
    shape = job.work.shape
    layer = job.work.compute * shape.layer_parameters
    if job.work.quantised:
        layer = int(_quantised_bits(job.config, shape.decoder)) // shape.layers
    return 2 * layer + (2 * layer if job.work.full else 0)


def fragmentation(job: PlannedJob, memory: GpuMemory) -> int:
    """Bytes that the allocator has reserved but cannot use, which grow with temporary memory.

    With expandable segments, which our services set; segments of fixed sizes leave more.
    """
    stay = states(job)
    return int(0.03 * (memory.total - stay.total + stay.gradients))


def overhead(job: PlannedJob) -> int:
    """Bytes of a process outside of torch: CUDA's context and libraries, NCCL's buffers."""
    # Only until a run here has measured it (`plan/earlier.py`).
    return int(0.5 * GIB) + (int(0.35 * GIB) if job.world > 1 else 0)
