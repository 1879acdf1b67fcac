"""FSDP2 over a fake process group: every collective returns at once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from workloads.config.sections import Profile
from workloads.engine.fake_step.trace import MemoryTrace
from workloads.engine.pretrained.files import compute_dtype


@contextlib.contextmanager
def mesh_of(config: Profile, world: int) -> Iterator[DeviceMesh | None]:
    """A mesh of `world` ranks, of which this process is rank 0; None where nothing is sharded.

    Enter it before the fake tensors: it reads values.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if config.strategy(world) != "fsdp2":
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module, config: Profile, mesh: DeviceMesh) -> None:
    """Shard a model in place as accelerate does: every block, then the rest."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    compute = compute_dtype(config.train)
    options: dict[str, Any] = {
        "mp_policy": MixedPrecisionPolicy(compute, compute, compute),
        "reshard_after_forward": not config.keeps_gathered,
        "mesh": mesh,
    }
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, **options)
    fully_shard(model, **options)


@contextlib.contextmanager
def storages_watched(trace: MemoryTrace) -> Iterator[None]:
    """Report to the trace when FSDP2 frees and refills the storages of gathered parameters."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    def counted(change: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def changed(tensor: Tensor) -> None:
            change(tensor)
            trace.resized(tensor)

        return changed

    with contextlib.ExitStack() as stack:
        for name in ("free_storage", "alloc_storage"):
            replacement = counted(getattr(_fsdp_param, name))
            stack.enter_context(mock.patch.object(_fsdp_param, name, replacement))
        yield
