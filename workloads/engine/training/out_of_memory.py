"""Out of memory: compares plan and reality, names fixes, or retries with smaller micro-batches."""

import torch

from workloads.config.sections import Profile
from workloads.device import GIB
from workloads.engine import distributed
from workloads.errors import Retry, TataraError
from workloads.plan.advice import advice
from workloads.plan.estimate import estimate
from workloads.run import Run
from workloads.run.directory import rows_in
from workloads.run.events import Event
from workloads.run.session import Session

# Without a GPU the advice is for the smallest usual card.
_USUAL = 24 * GIB
_SIZE = "per_device_batch_size"


def micro_batch(config: Profile, session: Session) -> tuple[int, int]:
    """Rows a rank and micro-batch, and micro-batches an optimizer step.

    With `train.on_out_of_memory=halve` a size that ran out of memory is not tried again, and the
    rows of a step stay the same. All ranks call it together.
    """
    train, world = config.train, distributed.world_size()
    size, count = train.per_device_batch_size, config.accumulation_steps(world)
    if train.on_out_of_memory == "stop":
        return size, count
    # Nodes without a shared disk have their own ranks' events only.
    failed = [item for sizes in distributed.gather(_too_large(session.run)) for item in sizes]
    if not failed or size < min(failed):
        return size, count
    most = max(1, min(failed) // 2)
    smaller = next(part for part in range(min(size, most), 0, -1) if size % part == 0)
    session.report(
        f"out of memory before: {smaller} rows a rank and micro-batch instead of {size}, "
        f"{size * count // smaller} micro-batches a step instead of {count}"
    )
    return smaller, size * count // smaller


def _too_large(run: Run) -> list[int]:
    """Sizes of the micro-batches that ran out of memory, by the run's events."""
    events = (event for event in rows_in(run.events) if event["event"] == Event.OUT_OF_MEMORY)
    return [int(event[_SIZE]) for event in events if _SIZE in event]


def out_of_memory(config: Profile, session: Session, size: int, error: Exception) -> TataraError:
    """The error to raise for torch's own: its first sentence, the plan, three concrete fixes.

    size: rows of the micro-batch that did not fit. Where the profile allows smaller ones, and there
    are any, it is a Retry.
    """
    config = _as_it_was(config, session.world_size, size)
    breakdown = estimate(config, session.world_size // config.parallel.nodes)
    gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_properties(session.local_rank).total_memory if gpu else _USUAL
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    planned = breakdown.total or 0
    facts = {"planned": planned, "measured": peak, "gpu": card, _SIZE: size}
    session.run.event(Event.OUT_OF_MEMORY, rank=session.rank, **facts)
    first = f"rank {session.rank} is out of memory: {str(error).splitlines()[0]}"
    if config.train.on_out_of_memory == "halve" and size > 1:
        return Retry(f"{first} The next attempt takes fewer than {size} rows a micro-batch")
    lines = [first]
    if planned:
        lines.append(
            f"planned {planned / GIB:.1f} GiB, measured {peak / GIB:.1f} GiB at the highest, "
            f"the GPU has {card / GIB:.1f} GiB"
        )
        parts = sorted(breakdown.parts.items(), key=lambda part: -part[1])[:3]
        largest = ", ".join(f"{name} {value / GIB:.1f} GiB" for name, value in parts if value)
        lines.append(f"the largest parts: {largest.replace('_', ' ')}")
    fixes = advice(breakdown, config, card)
    return TataraError("\n  ".join([*lines, "try one of these:", *fixes]))


def _as_it_was(config: Profile, world: int, size: int) -> Profile:
    """The config with the micro-batch in use, and the global batch unchanged."""
    whole = config.train.per_device_batch_size * config.accumulation_steps(world) * world
    batch = {_SIZE: size, "global_batch_size": whole}
    return config.model_copy(update={"train": config.train.model_copy(update=batch)})
