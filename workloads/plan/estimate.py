"""Predict what a profile needs before it runs: memory of a GPU and a node, disk, and FLOPs.

A prediction from shapes alone: no torch, no weights, a few milliseconds. The formulas are in
`memory.py` and `activations.py`; `bench/plan_memory.py` compares them with allocated bytes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from workloads.config.sections import Adapter, Profile
from workloads.plan.gpu_memory import GIB, Job, Moment, framework, job_of, moments, states
from workloads.plan.known_shapes import UnknownShape, shape_of
from workloads.plan.shapes import ModelShape

# Dense bf16 peak of one card in FLOP/s, by a part of the name that NVML gives; from data sheets.
PEAK_FLOPS: Mapping[str, float] = {
    "RTX 4090": 165e12,
    "A100": 312e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
}
# A process with torch and its libraries, and one that only loads data; bytes of host memory.
_RANK_MEMORY, _WORKER_MEMORY = 3 * GIB, int(0.6 * GIB)


@dataclass(frozen=True)
class Breakdown:
    """Bytes that one GPU needs, by part, at its highest; then what a node and a disk need.

    weights: frozen ones and copies in the compute type; master_weights: trained ones kept in a
    wider type; communication: buckets of DDP and ZeRO, layers on their way under FSDP2;
    not_together: what to take off the sum because it is gone before other parts have grown.
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
    not_together: int = 0
    host_memory: int = 0
    checkpoint_disk: int = 0
    checkpoints_kept: int = 0
    final_disk: int = 0
    strategy: str = ""
    world_size: int = 1
    ranks_per_node: int = 1
    tokens: int = 0
    peak_at: str = ""
    source: str = ""
    shape: ModelShape | None = None
    notes: tuple[str, ...] = ()
    unknown: str | None = None

    @property
    def parts(self) -> dict[str, int]:
        """The parts of a GPU's memory by name, without `not_together`."""
        return {name: self.__dict__[name] for name in _PARTS}

    @property
    def total(self) -> int | None:
        """Bytes of one GPU at its highest; None where the model's shape is unknown."""
        return None if self.unknown else sum(self.parts.values()) - self.not_together

    @property
    def allocated(self) -> int | None:
        """The part of `total` that torch's allocator counts."""
        return None if self.total is None else self.total - self.framework

    @property
    def disk(self) -> int:
        """Bytes that the run's checkpoints and final model need at most."""
        return self.checkpoint_disk * self.checkpoints_kept + self.final_disk


_PARTS = tuple(one.name for one in fields(Breakdown))[:10]


def estimate(
    config: Profile, gpus: int | None = None, env: Mapping[str, str] | None = None
) -> Breakdown:
    """What one GPU, one node and the disk need for a profile.

    gpus: on each node, one where not given; `parallel.ranks_per_node` wins over it. Where the
    model's shape cannot be found the breakdown is empty and `unknown` says why and what to do.
    """
    try:
        shape, source = shape_of(config.model, os.environ if env is None else env)
    except UnknownShape as error:
        return Breakdown(unknown=f"memory cannot be predicted: {error}")
    return _breakdown(config, shape, source, gpus)


def _breakdown(config: Profile, shape: ModelShape, source: str, gpus: int | None) -> Breakdown:
    job = job_of(config, shape, gpus)
    stays, through = states(job), moments(job)
    highest = max(through, key=lambda moment: _with_states(stays, moment.parts))
    parts = _at_their_highest(stays, through)
    peak = _with_states(stays, highest.parts)
    return Breakdown(
        **parts,
        framework=framework(job, peak - sum(stays.values()) + stays.get("gradients", 0)),
        not_together=sum(parts.values()) - peak,
        host_memory=_host_memory(job),
        checkpoint_disk=_checkpoint(job),
        checkpoints_kept=config.checkpoints.keep_last + config.checkpoints.keep_best + 1,
        final_disk=_final(job),
        strategy=job.strategy,
        world_size=job.world,
        ranks_per_node=job.ranks_per_node,
        tokens=job.work.tokens,
        peak_at=highest.name,
        source=source,
        shape=shape,
        notes=tuple(_notes(job)),
    )


def _at_their_highest(stays: Mapping[str, int], through: list[Moment]) -> dict[str, Any]:
    """Each part at its own highest, which is what a person looks for under its name."""
    parts: dict[str, Any] = dict(stays)
    for name in {name for moment in through for name in moment.parts}:
        most = max(moment.parts.get(name, 0) for moment in through)
        stay = stays.get(name, 0)
        parts[name] = max(stay, most) if name == "gradients" else stay + most
    return parts


def _with_states(stays: Mapping[str, int], parts: Mapping[str, int]) -> int:
    """Bytes at a moment: the states, with the gradients that there are at that moment."""
    return sum(stays.values()) - stays.get("gradients", 0) + sum(parts.values())


def _host_memory(job: Job) -> int:
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
    return processes + max(loaded, offloaded)


def _checkpoint(job: Job) -> int:
    """Bytes of one checkpoint of all ranks: trained weights and the optimizer's two moments."""
    size = 4 if job.offloads or not job.work.full else job.work.stored
    moments = 2 if job.config.optim.optimizer == "adamw_8bit" else 2 * size
    return job.trained * (size + moments)


def _final(job: Job) -> int:
    """Bytes of the exported model in the compute type, with the adapter beside it."""
    adapter = 0 if job.work.full else 4 * job.trained
    return job.work.shape.parameters * job.work.compute + adapter


def _notes(job: Job) -> list[str]:
    work, notes = job.work, [f"every row counted as {job.work.length} tokens, the longest allowed"]
    if not work.full and not work.adapted:
        known = ", ".join(dict.fromkeys(one.name for one in work.shape.linears))
        notes.append(f"adapter.targets names no matrix of this model; it has {known}")
    if job.strategy == "fsdp2" and job.accumulates:
        notes.append(
            "FSDP2 keeps whole gradients on every GPU while it accumulates; a larger "
            "train.per_device_batch_size without accumulation needs none of that"
        )
    if job.config.workload == "grpo":
        notes.append("the memory that vLLM reserves on the same GPU is not counted")
    return notes


def fits(breakdown: Breakdown, memory_of_gpu: int) -> bool | None:
    """Whether a GPU of so many bytes holds it; None where the shape is unknown."""
    return None if breakdown.total is None else breakdown.total <= memory_of_gpu


@dataclass(frozen=True)
class _Fix:
    """Settings to type, the config that they make, and what it would need."""

    words: tuple[str, ...]
    config: Profile
    total: int


@dataclass(frozen=True)
class _Weigher:
    """Makes fixes for one shape on one machine."""

    shape: ModelShape
    gpus: int
    memory_of_gpu: int

    def fix(self, config: Profile, *changes: tuple[str, Any]) -> _Fix:
        words = []
        for name, value in changes:
            section, setting = name.split(".")
            part = config.__dict__[section].model_copy(update={setting: value})
            config = config.model_copy(update={section: part})
            words.append(f"{name}={_typed(value)}")
        return _Fix(tuple(words), config, self.total(config))

    def total(self, config: Profile) -> int:
        return _breakdown(config, self.shape, "", self.gpus).total or 0

    def smaller_batch(self, config: Profile) -> _Fix:
        """The largest part of the micro-batch that fits, or one; the global batch stays."""
        world = self.gpus * config.parallel.nodes
        size = config.train.per_device_batch_size
        whole = config.train.global_batch_size or size * world
        found = []
        for part in (part for part in range(size // 2, 0, -1) if size % part == 0):
            batch = ("train.per_device_batch_size", part), ("train.global_batch_size", whole)
            found.append(self.fix(config, *batch))
        return next((fix for fix in found if fix.total <= self.memory_of_gpu), found[-1])

    def all(self, config: Profile) -> list[_Fix]:
        """Every single change that may help."""
        train, full = config.train, config.adapter.method == "full"
        world = self.gpus * config.parallel.nodes
        strategy = config.strategy(world)
        wanted: list[tuple[bool, str, Any]] = [
            (not train.gradient_checkpointing, "train.gradient_checkpointing", True),
            (not train.fused_cross_entropy, "train.fused_cross_entropy", True),
            (config.optim.optimizer == "adamw", "optim.optimizer", "adamw_8bit"),
            (strategy == "ddp", "parallel.strategy", "fsdp2"),
            (full and world > 1 and strategy != "zero3", "parallel.strategy", "zero3"),
            (config.adapter.method == "lora", "adapter.method", "qlora"),
        ]
        found = [self.fix(config, (name, value)) for useful, name, value in wanted if useful]
        if full:
            lora = ("adapter.method", "lora")
            found.append(self.fix(config, lora, *_targets(config, self.shape)))
        if train.per_device_batch_size > 1:
            found.append(self.smaller_batch(config))
        return found

    def together(self, config: Profile) -> _Fix | None:
        """The best change after the best change, until it fits or nothing helps."""
        best: _Fix | None = None
        while best is None or best.total > self.memory_of_gpu:
            step = min(self.all(config), key=lambda fix: fix.total, default=None)
            if step is None or step.total >= 0.99 * (best.total if best else self.total(config)):
                break
            names = {word.split("=")[0] for word in step.words}
            kept = [word for word in best.words if word.split("=")[0] not in names] if best else []
            config = step.config
            best = _Fix((*kept, *step.words), config, step.total)
        return best


def advice(breakdown: Breakdown, config: Profile, memory_of_gpu: int) -> list[str]:
    """Three ways to need less, by effect, as settings to type with the new prediction.

    Where none of them is enough alone a fourth line has several together. Empty where nothing
    helps; the reason where the shape is unknown.
    """
    before = breakdown.total
    if before is None or breakdown.shape is None:
        return [breakdown.unknown or "memory cannot be predicted"]
    weigher = _Weigher(breakdown.shape, breakdown.ranks_per_node, memory_of_gpu)
    fixes = [fix for fix in weigher.all(config) if fix.total < 0.99 * before]
    better = sorted(fixes, key=lambda fix: fix.total)
    lines = [_line(fix, before, memory_of_gpu) for fix in better[:3]]
    if better and better[0].total > memory_of_gpu:
        together = weigher.together(config)
        if together is not None and together.total < better[0].total:
            lines.append(_line(together, before, memory_of_gpu))
    return lines


def _line(fix: _Fix, before: int, memory_of_gpu: int) -> str:
    new = f"{_gib(fix.total)} instead of {_gib(before)}"
    verdict = "fits" if fix.total <= memory_of_gpu else "still too much"
    needs = " (needs the package deepspeed)" if "parallel.strategy=zero3" in fix.words else ""
    return f"{' '.join(fix.words)}: {new}, {verdict} in {_gib(memory_of_gpu)}{needs}"


def _targets(config: Profile, shape: ModelShape) -> list[tuple[str, Any]]:
    """All matrices where the targets set are none of the model's."""
    if shape.adapted(config.adapter.targets):
        return []
    return [("adapter.targets", ("all-linear",))]


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def mfu_flops_per_token(shape: ModelShape, seq_len: int, adapter: Adapter) -> int:
    """Useful FLOPs of one training token: 6 N + 6 L H (d_qk + d_v) s; 4 N where only LoRA trains.

    N leaves out the embedding of an untied model, which is looked up, not multiplied.
    """
    looked_up = 0 if shape.tied else shape.vocab * shape.hidden
    factor = 6 if adapter.method == "full" else 4
    attention = 6 * shape.layers * shape.heads * 2 * shape.head_dim * seq_len
    return factor * (shape.parameters - looked_up) + attention


def peak_flops(gpu_name: str) -> float | None:
    """Dense bf16 peak of a card in FLOP/s by its name; None for one that is not in the table."""
    matching = [known for known in PEAK_FLOPS if known.lower() in gpu_name.lower()]
    return PEAK_FLOPS[max(matching, key=len)] if matching else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


_LABELS = {
    "weights": "weights and copies in the compute type",
    "master_weights": "master weights",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "adapter_states": "adapter with its gradients and states",
    "quantised_base": "quantised base",
    "activations": "activations",
    "logits": "logits",
    "communication": "communication buffers",
    "framework": "CUDA, libraries, fragmentation",
}


def table(breakdown: Breakdown, memory_of_gpu: int | None = None) -> None:
    """Print a breakdown for people; a line of why where the shape is unknown."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if breakdown.unknown or breakdown.total is None or breakdown.shape is None:
        console.print(breakdown.unknown, markup=False)
        return
    shape = breakdown.shape
    console.print(
        f"{shape.parameters:,} parameters ({shape.family}, from {breakdown.source}), "
        f"{breakdown.strategy} on {breakdown.world_size} x 1 GPU, "
        f"{breakdown.tokens:,} tokens a GPU and micro-batch",
        markup=False,
    )
    grid = Table(show_edge=False, pad_edge=False)
    grid.add_column("memory of one GPU")
    grid.add_column("GiB", justify="right")
    for name, size in breakdown.parts.items():
        if size:
            grid.add_row(_LABELS[name], f"{size / GIB:.2f}")
    if breakdown.not_together:
        grid.add_row("not held at the same time", f"-{breakdown.not_together / GIB:.2f}")
    grid.add_section()
    grid.add_row(f"highest, at the {breakdown.peak_at}", f"{breakdown.total / GIB:.2f}")
    if memory_of_gpu:
        grid.add_row("the GPU has", f"{memory_of_gpu / GIB:.2f}")
    console.print(grid)
    console.print(
        f"memory of a node {_gib(breakdown.host_memory)}; disk {_gib(breakdown.disk)}: "
        f"{breakdown.checkpoints_kept} checkpoints of {_gib(breakdown.checkpoint_disk)}, "
        f"final model {_gib(breakdown.final_disk)}",
        markup=False,
    )
    for note in breakdown.notes:
        console.print(f"note: {note}", markup=False)
