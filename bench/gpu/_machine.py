"""What the machine has: for a person before the run, and for every result file."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import sysconfig
import time
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

from bench.gpu._install import FACTS, unmet

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "pyarrow", "pandas",
          "pydantic")  # fmt: skip
PACKAGES = (*NEEDED, "numpy", "tokenizers", "triton", "bitsandbytes", "liger-kernel", "kernels",
            "flash-attn", "vllm", "torchvision", "deepspeed")  # fmt: skip


def version(name: str) -> str | None:
    """The installed version of a package; None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts(device: str) -> dict[str, Any]:
    """Versions and card: what a result has to be read with."""
    import torch

    known = {name: version(name) for name in PACKAGES}
    found: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "packages": {name: value for name, value in known.items() if value},
        "cuda": torch.version.cuda,
        "card": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory": properties.total_memory}
        found |= {"capability": f"{properties.major}.{properties.minor}"}
        found["driver"] = _driver()
    return found


def _driver() -> str | None:
    try:
        from workloads.device import driver
    except ImportError:
        return None
    here = driver()
    return here.version if here else None


def outside_ranges() -> list[str]:
    """Packages that are here in versions which pyproject.toml does not name."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = []
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        here = version(requirement.name)
        if here and requirement.name in PACKAGES and not requirement.specifier.contains(here):
            told.append(f"{requirement.name} {here} (written for {requirement.specifier})")
    return told


def report() -> None:
    """Print what is here; end with 2 where the run cannot begin."""
    device = sys.argv[1]
    missing = [name for name in NEEDED if not version(name)]
    if missing:
        print(
            f"expected {', '.join(missing)} in this Python ({sys.executable}), found none; set "
            "PYTHON to the one that holds torch, and run `make gpu-bundle` for what can be carried",
            file=sys.stderr,
        )
        sys.exit(2)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"expected a CUDA GPU that torch {torch.__version__} can use, found none: "
            f"{_why_no_gpu()}; --device cpu runs the parts with tiny shapes and stand-ins",
            file=sys.stderr,
        )
        sys.exit(2)
    print(json.dumps(facts(device)))
    if device == "cuda":
        _compute()
        for line in lacking():
            print(line)
    if others := outside_ranges():
        print(f"other versions than this code was written for: {'; '.join(others)}")
    sites = [Path(place) for place in sys.path if (Path(place) / FACTS).is_file()]
    if others := [line for site in sites for line in unmet(site)]:
        print(f"other packages than the bundle's ask for: {'; '.join(others)}")


def _why_no_gpu() -> str:
    """torch's own reason: no driver, one that is too old, or one that is not ready."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter for a build without CUDA
        return str(error).strip().splitlines()[0]
    return f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}"


def _compute() -> None:
    """One product on the GPU, so that a card that computes nothing does not cost every part."""
    import torch

    try:
        torch.ones(64, 64, device="cuda").mm(torch.ones(64, 64, device="cuda")).sum().item()
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        fix = "where its driver cannot map memory in parts, set PYTORCH_ALLOC_CONF="
        fix += "expandable_segments:False"
        if "no kernel image" in said:
            fix = f"this torch has code for {', '.join(torch.cuda.get_arch_list())}"
        print(f"expected the GPU to compute, found: {said}; {fix}", file=sys.stderr)
        sys.exit(2)


def lacking() -> list[str]:
    """What makes some parts fail here, each with what to do."""
    import torch

    told = []
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    lacks = [] if compiler else ["compiler"]
    lacks += [] if header.is_file() else [str(header)]
    if lacks:
        told.append(
            f"expected a C compiler and Python.h, found no {' and no '.join(lacks)}: Triton "
            "compiles its launchers with them, so that the fused head and torch.compile fail; "
            "install gcc and this Python's headers"
        )
    spec = importlib.util.find_spec("bitsandbytes")
    major = (torch.version.cuda or "").partition(".")[0]
    # bitsandbytes takes a library of another minor version.
    library = f"libbitsandbytes_cuda{major}[0-9].so"
    if spec and spec.origin and not list(Path(spec.origin).parent.glob(library)):
        told.append(f"bitsandbytes has no library for CUDA {major}: 8-bit AdamW and QLoRA fail")
    return told


def wait_for_memory(patience: float = 5, share: float = 0.95) -> str:
    """Wait while memory of the GPU becomes free, as it does once the part before is gone; what is
    in use when nothing has changed for `patience` seconds, empty where nearly all is free."""
    import torch

    most, since = 0, time.monotonic()
    while True:
        free, total = torch.cuda.mem_get_info()
        if free >= share * total:
            return ""
        if free > most:
            most, since = free, time.monotonic()
        elif time.monotonic() - since > patience:
            return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU are in use"
        time.sleep(0.5)
