"""GPU memory of a run as it was planned and as it was measured, for its manifest."""

from dataclasses import asdict
from typing import Any

import torch

from workloads.config.sections import Profile
from workloads.plan.estimate import estimate


def start_measuring() -> None:
    """Forget the peaks so far, where there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def memory_facts(config: Profile, world_size: int) -> dict[str, Any]:
    """The memory plan of this run, and the memory that this rank's GPU has held since the start.

    Bytes of one GPU: allocated and reserved by torch, and of the whole process, which has CUDA's
    context besides; moments: those of a step as planned, with their parts. measured and card are
    None where there is no GPU. `plan/earlier.py` reads it.
    """
    planned = estimate(config, world_size // config.parallel.nodes)
    facts: dict[str, Any] = {"world_size": world_size, "card": None, "measured": None}
    facts["planned"] = {
        "allocated": planned.allocated,
        "reserved": planned.reserved,
        "process": planned.total,
    }
    facts["moments"] = [
        {"name": moment.name, "parts": asdict(moment.memory)} for moment in planned.moments
    ]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        beside = max(0, total - free - torch.cuda.memory_reserved())
        reserved = torch.cuda.max_memory_reserved()
        facts["card"] = torch.cuda.get_device_name()
        facts["measured"] = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": reserved,
            "process": reserved + beside,
        }
    return facts
