"""Predict what a profile needs before it runs: memory of a GPU and a node, and disk.

A prediction from shapes alone: no torch, no weights, a few milliseconds. The formulas are in
`gpu_memory.py` and `activations.py`; `bench/plan_memory.py` compares them with allocated bytes.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from workloads.config.sections import Profile
from workloads.device import GIB
from workloads.plan.activations import kept_layer, layers_here
from workloads.plan.gpu_memory import (
    GpuMemory,
    Moment,
    PlannedJob,
    fragmentation,
    job_of,
    moments,
    overhead,
    states,
)
from workloads.plan.known_shapes import UnknownShape, shape_of
from workloads.plan.shapes import ModelShape

# Every row is counted at the longest length: a plan over the GPU by this factor may still fit.
MAY_FIT = 1.15
# With less than this share to spare a GPU is not safe: measurements differ by a few percent.
SAFE = 0.08
# Bytes of host memory of a process with torch and libraries, and of a data loader's process.
_RANK_MEMORY, _WORKER_MEMORY = 3 * GIB, int(0.6 * GIB)


@dataclass(frozen=True)
class Breakdown:
    """Bytes of one GPU at its peak, and of a node and a disk.

    gpu: the parts at that moment, `peak_at`; states: parameters, gradients and optimizer states
    after a step; reserved: bytes that torch's allocator takes from the GPU; moments: all candidates
    for the peak.
    """

    gpu: GpuMemory = GpuMemory()
    states: GpuMemory = GpuMemory()
    reserved: int = 0
    moments: tuple[Moment, ...] = ()
    host_memory: int = 0
    checkpoint_disk: int = 0
    checkpoints_kept: int = 0
    final_disk: int = 0
    strategy: str = ""
    world_size: int = 1
    ranks_per_node: int = 1
    tokens: int = 0
    peak_at: str = ""
    engine_share: float = 0.0
    engine_weights: int = 0
    source: str = ""
    shape: ModelShape | None = None
    notes: tuple[str, ...] = ()
    unknown: str | None = None

    @property
    def parts(self) -> dict[str, int]:
        """The parts of a GPU's memory at its highest by name."""
        return asdict(self.gpu)

    @property
    def total(self) -> int | None:
        """Bytes of one GPU at its highest; None where the model's shape is unknown."""
        return None if self.unknown else self.gpu.total

    @property
    def allocated(self) -> int | None:
        """The part of `total` that torch's allocator counts."""
        return None if self.unknown else self.gpu.total - self.gpu.framework

    def with_overhead(self, size: int) -> "Breakdown":
        """The same with another overhead of a process beside torch's memory."""
        spare = self.reserved - self.gpu.total + self.gpu.framework
        return replace(self, gpu=replace(self.gpu, framework=spare + size))

    def need(self, memory_of_gpu: int) -> int | None:
        """Bytes of a GPU of that size at its highest, in a step or between two; None where the
        shape is unknown."""
        return None if self.total is None else max(self.total, self.between_steps(memory_of_gpu))

    def between_steps(self, memory_of_gpu: int) -> int:
        """Bytes while another engine has its share of the GPU beside the states; 0 without one."""
        if not self.engine_share:
            return 0
        waiting = self.states.total - self.states.gradients + self.gpu.framework
        return waiting + max(int(self.engine_share * memory_of_gpu), self.engine_weights)

    def starves_engine(self, memory_of_gpu: int) -> bool:
        """Whether the engine's share of such a GPU is less than the weights that it has to hold."""
        return self.engine_weights > self.engine_share * memory_of_gpu

    @property
    def disk(self) -> int:
        """Bytes that the run's checkpoints and final model need at most."""
        return self.checkpoint_disk * self.checkpoints_kept + self.final_disk


def estimate(
    config: Profile, gpus: int | None = None, env: Mapping[str, str] | None = None
) -> Breakdown:
    """What one GPU, one node and the disk need for a profile.

    gpus: on each node, one where not given; `parallel.ranks_per_node` wins over it. Where the
    model's shape cannot be found the breakdown is empty, and `unknown` has the reason and the fix.
    """
    try:
        shape, source = shape_of(config.model, os.environ if env is None else env)
    except UnknownShape as error:
        return Breakdown(unknown=f"memory cannot be predicted: {error}")
    return breakdown_of(config, shape, source, gpus)


def breakdown_of(config: Profile, shape: ModelShape, source: str, gpus: int | None) -> Breakdown:
    """The same for a model whose shape is known."""
    job = job_of(config, shape, gpus)
    through = tuple(moments(job))
    highest = max(through, key=lambda moment: moment.memory.total)
    spare = fragmentation(job, highest.memory)
    return Breakdown(
        gpu=replace(highest.memory, framework=spare + overhead(job)),
        states=states(job),
        reserved=highest.memory.total + spare,
        moments=through,
        host_memory=_host_memory(job),
        checkpoint_disk=_checkpoint(job),
        checkpoints_kept=config.checkpoints.keep_last + config.checkpoints.keep_best + 1,
        final_disk=_final(job),
        strategy=job.strategy,
        world_size=job.world,
        ranks_per_node=job.ranks_per_node,
        tokens=job.work.tokens,
        peak_at=highest.name,
        engine_share=config.engine_share,
        engine_weights=config.engine_weights(shape),
        source=source,
        shape=shape,
        notes=tuple(_notes(job)),
    )


def _host_memory(job: PlannedJob) -> int:
    """Bytes of one node: its processes, the weights while they are loaded, an offloaded optimizer.

    Every rank reads the whole model into host memory before it goes to its GPU.
    """
    work = job.work
    ranks = job.ranks_per_node
    processes = ranks * (_RANK_MEMORY + job.config.train.workers * _WORKER_MEMORY)
    loaded = ranks * work.shape.parameters * (work.stored if work.full else work.compute)
    if job.config.adapter.method == "qlora":
        loaded = 0  # read matrix by matrix onto the GPU
    # fp32 weights, gradients and two moments, shared by all nodes.
    offloaded = 16 * job.trained // job.config.parallel.nodes if job.offloads else 0
    waiting = ranks * (work.shape.layers - layers_here(work)) * kept_layer(work)
    return processes + max(loaded, offloaded + waiting)


def _checkpoint(job: PlannedJob) -> int:
    """Bytes of one checkpoint of all ranks: trained weights and the optimizer's two moments."""
    size = 4 if job.offloads or not job.work.full else job.work.stored
    moments = 2 if job.config.optim.optimizer == "adamw_8bit" else 2 * size
    return job.trained * (size + moments)


def _final(job: PlannedJob) -> int:
    """Bytes of the exported model in the compute type, with the adapter beside it."""
    adapter = 0 if job.work.full else 4 * job.trained
    return job.work.shape.parameters * job.work.compute + adapter


def _notes(job: PlannedJob) -> list[str]:
    work, notes = (
        job.work,
        [f"every row counted as {job.work.length:,} tokens, the longest allowed"],
    )
    if not work.full and not work.adapted:
        known = ", ".join(dict.fromkeys(linear.name for linear in work.shape.linears))
        notes.append(f"adapter.targets names no matrix of this model; it has {known}")
    if job.config.adapter.use_dora and not work.full:
        notes.append(
            "adapter.use_dora is counted as plain LoRA, and needs more: two products of every "
            "adapted matrix, and a copy of the largest one or several"
        )
    uncounted = [
        name
        for name in job.config.adapter.modules_to_save
        if not work.full and not work.shape.trained_whole((name,))
    ]
    if uncounted:
        notes.append(f"adapter.modules_to_save: {', '.join(uncounted)} not counted")
    if job.config.train.compile:
        notes.append(
            "torch.compile counted as fused norms and activations: what was published is within 8%"
        )
    if job.strategy == "fsdp2" and job.accumulates:
        notes.append(
            "FSDP2 keeps whole gradients on every GPU while it accumulates; a larger "
            "train.per_device_batch_size without accumulation needs none of that"
        )
    if job.config.engine_share:
        share = job.config.engine_share
        notes.append(f"between steps vLLM takes {share:.0%} of the GPU beside weights and states")
    return notes


def fits(breakdown: Breakdown, memory_of_gpu: int) -> bool | None:
    """Whether a GPU of so many bytes holds it; None where the shape is unknown."""
    need = breakdown.need(memory_of_gpu)
    if need is None:
        return None
    return need <= memory_of_gpu and not breakdown.starves_engine(memory_of_gpu)


def verdict(breakdown: Breakdown, memory_of_gpu: int) -> str:
    """The verdict as text: `fits, 31 % to spare`, not safe, or does not fit."""
    need = breakdown.need(memory_of_gpu)
    if need is None:
        return breakdown.unknown or "not known"
    size = gib(memory_of_gpu)
    if need > memory_of_gpu:
        when = " while vLLM has its share" if breakdown.total != need else ""
        return f"does not fit in a GPU of {size}: {gib(need - memory_of_gpu)} too much{when}"
    if breakdown.starves_engine(memory_of_gpu):
        return (
            f"does not fit in a GPU of {size}: vLLM's share of it, "
            f"{gib(int(breakdown.engine_share * memory_of_gpu))}, is less than its weights, "
            f"{gib(breakdown.engine_weights)}; raise generation.gpu_memory_utilization"
        )
    spare = 1 - need / memory_of_gpu
    if spare < SAFE:
        return f"fits in a GPU of {size} with {spare:.0%} to spare: not safe"
    return f"fits in a GPU of {size}, {spare:.0%} to spare"


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
