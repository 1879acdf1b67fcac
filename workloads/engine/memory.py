"""What to say when a GPU is out of memory: the plan against reality, and what to change."""

import torch

from workloads import plan
from workloads.errors import TataraError
from workloads.sections import Profile
from workloads.session import Session

_GIB = 2**30
# Without a GPU there is none to measure; the advice is then for the smallest usual card.
_USUAL = 24 * _GIB


def out_of_memory(config: Profile, session: Session, error: Exception) -> TataraError:
    """The error to raise for torch's own: its first sentence, the plan, three concrete fixes."""
    breakdown = plan.estimate(config, session.world_size // config.parallel.nodes)
    gpu = torch.cuda.is_available()
    size = torch.cuda.get_device_properties(session.local_rank).total_memory if gpu else _USUAL
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    planned = breakdown.total or 0
    session.run.event("oom", rank=session.rank, planned=planned, measured=peak, gpu=size)
    lines = [f"rank {session.rank} is out of memory: {str(error).splitlines()[0]}"]
    if planned:
        lines.append(
            f"planned {planned / _GIB:.1f} GiB, measured {peak / _GIB:.1f} GiB at the highest, "
            f"the GPU has {size / _GIB:.1f} GiB"
        )
        parts = sorted(breakdown.parts.items(), key=lambda part: -part[1])[:3]
        largest = ", ".join(f"{name} {value / _GIB:.1f} GiB" for name, value in parts if value)
        lines.append(f"the largest parts: {largest.replace('_', ' ')}")
    fixes = plan.advice(breakdown, config, size)
    return TataraError("\n  ".join([*lines, "try one of these:", *fixes]))
