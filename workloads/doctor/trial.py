"""The trials of `tatara doctor --deep`, each in its own process: imports, compute, collective.

    python -m workloads.doctor.trial imports torch transformers …
    python -m workloads.doctor.trial compute
    torchrun --nproc-per-node 2 -m workloads.doctor.trial collective

Each prints one JSON object, last.
"""

import importlib
import json
import os
import sys
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SIZE = 64
# Of the largest gradient: bf16 keeps 8 bits, and 64 products are summed.
_MAY_DIFFER = 0.05
_WAIT = timedelta(seconds=60)
# Modules whose package is named differently.
_PACKAGES = {"PIL": "pillow"}


def main(words: list[str]) -> int:
    """Run the trial of that name."""
    name, *rest = words
    if name == "imports":
        return imports(rest)
    return compute() if name == "compute" else collective()


def imports(names: list[str]) -> int:
    """Import each module; print its version, or what went wrong."""
    versions = {}
    for name in names:
        try:
            importlib.import_module(name)
            versions[name] = metadata.version(_PACKAGES.get(name, name.replace("_", "-")))
        except Exception as error:  # whatever a broken package raises is the finding
            versions[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    print(json.dumps(versions))
    return 0


def compute() -> int:
    """Forward and backward pass of a layer on the device, in a training's dtype."""
    import torch

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    half = has_gpu and torch.cuda.get_device_capability() >= (8, 0)
    dtype = torch.bfloat16 if half else torch.float16 if has_gpu else torch.float32
    torch.manual_seed(0)
    weight, rows = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    here, there = (
        _gradient(weight.to(place, kind), rows.to(place, kind)).to("cpu", torch.float32)
        for place, kind in ((torch.device("cpu"), torch.float32), (device, dtype))
    )
    error = ((here - there).abs().max() / here.abs().max()).item()
    name = torch.cuda.get_device_name() if has_gpu else "CPU"
    print(json.dumps({"device": name, "dtype": str(dtype)[6:], "error": f"{error:.1e}"}))
    if not error <= _MAY_DIFFER:
        print(f"gradients differ by {error:.1e} of their size", file=sys.stderr)
        return 1
    return 0


def _gradient(weight: "torch.Tensor", rows: "torch.Tensor") -> "torch.Tensor":
    """The gradient of a small loss with respect to the weight."""
    weight = weight.detach().clone().requires_grad_(True)
    (rows @ weight).tanh().mean().backward()
    assert weight.grad is not None
    return weight.grad


def collective() -> int:
    """Add up rank + 1 over all ranks: nccl where each has a GPU of its own, gloo elsewhere."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=_WAIT)
    number = torch.tensor([float(rank + 1)], device=device)
    dist.all_reduce(number)
    agreed = number.item() == world * (world + 1) / 2
    dist.barrier()
    if rank == 0 and agreed:
        print(json.dumps({"backend": backend, "device": str(device.type)}), flush=True)
    dist.destroy_process_group()
    # gloo's threads may abort an interpreter during its shutdown; the result is known by now.
    os._exit(0 if agreed else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
