"""Changes of a profile that need less memory, as settings to type."""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from workloads.config.sections import Profile
from workloads.plan.estimate import Breakdown, breakdown_of, gib
from workloads.plan.shapes import ModelShape


@dataclass(frozen=True)
class _Fix:
    """Settings to type, the config that they make, and what it would need."""

    words: tuple[str, ...]
    config: Profile
    total: int


@dataclass(frozen=True)
class _Weigher:
    """Makes fixes for one shape on one machine; `always` are changes without which none helps."""

    shape: ModelShape
    gpus: int
    memory_of_gpu: int
    always: tuple[tuple[str, Any], ...] = ()

    def fix(self, config: Profile, *changes: tuple[str, Any]) -> _Fix:
        words = []
        for name, value in (*changes, *self.always):
            config = changed(config, name, value)
            words.append(f"{name}={typed(value)}")
        return _Fix(tuple(words), config, self.total(config))

    def total(self, config: Profile) -> int:
        found = breakdown_of(config, self.shape, "", self.gpus)
        return found.need(self.memory_of_gpu) or 0

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
        if self.always:
            found.append(self.fix(config))
        return [fix for fix in found if is_valid(fix.config)]

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
    before = breakdown.need(memory_of_gpu)
    if before is None or breakdown.shape is None:
        return [breakdown.unknown or "memory cannot be predicted"]
    share = _larger_share(breakdown, memory_of_gpu)
    weigher = _Weigher(breakdown.shape, breakdown.ranks_per_node, memory_of_gpu, share)
    fixes = [
        fix
        for fix in weigher.all(config)
        if fix.total < 0.99 * before or (share and fix.total <= memory_of_gpu)
    ]
    better = sorted(fixes, key=lambda fix: fix.total)
    lines = [_line(fix, before, memory_of_gpu) for fix in better[:3]]
    if better and better[0].total > memory_of_gpu:
        together = weigher.together(config)
        if together is not None and together.total < better[0].total:
            lines.append(_line(together, before, memory_of_gpu))
    return lines


def _larger_share(breakdown: Breakdown, memory_of_gpu: int) -> tuple[tuple[str, Any], ...]:
    """The share of the GPU that an engine needs for its weights, in twentieths, if it has less."""
    if not breakdown.starves_engine(memory_of_gpu):
        return ()
    share = (math.floor(20 * breakdown.engine_weights / memory_of_gpu) + 1) / 20
    return (("generation.gpu_memory_utilization", min(share, 0.95)),)


def _line(fix: _Fix, before: int, memory_of_gpu: int) -> str:
    new = f"{gib(fix.total)} instead of {gib(before)}" if fix.total < before else gib(fix.total)
    verdict = "fits" if fix.total <= memory_of_gpu else "still too much"
    needs = " (needs the package deepspeed)" if "parallel.strategy=zero3" in fix.words else ""
    return f"{' '.join(fix.words)}: {new}, {verdict} in {gib(memory_of_gpu)}{needs}"


def is_valid(config: Profile) -> bool:
    """Whether the schema accepts it; a workload may refuse a pair of settings."""
    try:
        type(config).model_validate(config.model_dump())
    except ValidationError:
        return False
    return True


def changed(config: Profile, name: str, value: Any) -> Profile:
    """The profile with the setting `section.name` replaced; nothing is validated."""
    section, setting = name.split(".")
    part = dict(config)[section].model_copy(update={setting: value})
    return config.model_copy(update={section: part})


def _targets(config: Profile, shape: ModelShape) -> list[tuple[str, Any]]:
    """Targets of an adapter; all matrices where the set ones are not in the model."""
    if shape.adapted(config.adapter.targets):
        return []
    return [("adapter.targets", ("all-linear",))]


def typed(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
