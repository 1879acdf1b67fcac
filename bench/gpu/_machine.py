"""What the machine has: for a person before the run, and for every result file."""

import importlib.metadata
import json
import platform
import sys
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
            "expected a CUDA GPU that torch can use, found none; --device cpu runs the parts with "
            "tiny shapes and stand-ins",
            file=sys.stderr,
        )
        sys.exit(2)
    print(json.dumps(facts(device)))
    if device == "cuda":
        _compute()
    if others := outside_ranges():
        print(f"other versions than this code was written for: {'; '.join(others)}")
    sites = [Path(place) for place in sys.path if (Path(place) / FACTS).is_file()]
    if others := [line for site in sites for line in unmet(site)]:
        print(f"other packages than the bundle's ask for: {'; '.join(others)}")


def _compute() -> None:
    """One product on the GPU, so that a card that computes nothing does not cost every part."""
    import torch

    try:
        torch.ones(64, 64, device="cuda").mm(torch.ones(64, 64, device="cuda")).sum().item()
    except RuntimeError as error:
        print(
            f"expected the GPU to compute, found: {str(error).strip().splitlines()[0]}; where its "
            "driver cannot map memory in parts, PYTORCH_ALLOC_CONF=expandable_segments:False helps",
            file=sys.stderr,
        )
        sys.exit(2)
