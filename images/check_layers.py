"""Do the GPU layers of the images fit each other? `python images/check_layers.py`, without a GPU.

Asks the package index for metadata alone, no wheel is downloaded: what torch's build for GPUs wants
of CUDA, and whether the image holds what vLLM, torchvision and torchaudio require, and the torch
they were built against by what a wheel's name says. flash-attention comes as source: it has to be
compiled against the torch that is there, not against one of its own. Exit code 1 names what does
not fit.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

IMAGES = Path(__file__).resolve().parent
CUDA = "13"
# Of the images: Python 3.11 on Linux.
ENVIRONMENT = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "extra": "",
}
BUILT_AGAINST_TORCH = ("vllm", "torchvision", "torchaudio")
FLASH = "flash-attn"


def main() -> int:
    """Print what was found, and what does not fit."""
    locked = pins(IMAGES / "grpo-h100" / "requirements.lock")
    dockerfile = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
    torch = re.search(r"^ARG TORCH_VERSION=(\S+)", dockerfile, re.M)
    assert torch is not None
    names = [name for name in BUILT_AGAINST_TORCH if name in locked]
    found = metadata([f"torch=={torch[1]}", *(f"{name}=={locked[name]}" for name in names)])
    flash = metadata([FLASH])
    wrong = [
        *unfit({**found, **flash}, {**locked, "torch": torch[1]}),
        *other_cuda(pins(IMAGES / "grpo-h100" / "requirements-cuda.lock")),
        *built_apart(dockerfile),
    ]
    for name, entry in sorted({**found, **flash}.items()):
        wants = [str(need) for need in requires(entry) if need.name in ("torch", "cuda-toolkit")]
        print(f"{name} {entry['metadata']['version']}: {', '.join(wants) or 'wants no torch'}")
    if not flash:
        print(f"{FLASH}: source alone, compiled against torch {torch[1]}")
    for line in wrong:
        print(f"images: {line}", file=sys.stderr)
    return 1 if wrong else 0


def pins(lock: Path) -> dict[str, str]:
    """Versions by name."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.M))


def metadata(wanted: Sequence[str]) -> dict[str, Any]:
    """Each package's entry of pip's report, its file and its own metadata; empty without wheels."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", "--only-binary=:all:", "--target", "none"]
    command += ["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", *wanted]
    # The public index alone: a folder of wheels may hold the build of torch for CPUs.
    env = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    env["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode and "No matching distribution found" in done.stderr:
        return {}
    if done.returncode:
        sys.exit(f"images: the package index did not answer: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    return {entry["metadata"]["name"].lower(): entry for entry in report["install"]}


def requires(entry: Mapping[str, Any]) -> list[Requirement]:
    """What a package requires in the images, without extras."""
    found = [Requirement(line) for line in entry["metadata"].get("requires_dist") or []]
    return [need for need in found if need.marker is None or need.marker.evaluate(ENVIRONMENT)]


def unfit(found: Mapping[str, Any], held: Mapping[str, str]) -> list[str]:
    """Packages that ask for other versions than are held, or were built against another torch, and
    a torch built for another CUDA.

    held: versions by name, as the image has them.
    """
    wrong = []
    for name, entry in found.items():
        file = entry.get("download_info", {}).get("url", "").rpartition("/")[2]
        for_torch = re.search(r"torch(\d+\.\d+)", file.replace("%2B", "+").partition("+")[2])
        if for_torch and not held["torch"].startswith(f"{for_torch[1]}."):
            wrong.append(f"expected {name} for torch {held['torch']}, found {file}")
        for need in requires(entry):
            own = held.get(re.sub(r"[-_.]+", "-", need.name).lower())
            if own and not need.specifier.contains(own, prereleases=True):
                wrong.append(f"expected {name} for {need.name} {own}, found it for {need}")
            named = re.match(r"(nvidia-[a-z0-9-]+-cu|cuda-toolkit\[.*\]==)(\d+)", str(need))
            if name == "torch" and named and named[2] != CUDA:
                wrong.append(f"expected torch for CUDA {CUDA}, found it to want {need}")
    return wrong


def built_apart(dockerfile: str) -> list[str]:
    """Steps that compile flash-attention against a torch of its own, not against the image's."""
    lines = [line.strip() for line in dockerfile.splitlines() if f'"{FLASH}==' in line]
    return [
        f"expected {FLASH} to be compiled with --no-build-isolation, found {line!r}"
        for line in lines
        if "--no-build-isolation" not in line
    ] or ([] if lines else [f"expected a step that compiles {FLASH}, found none"])


def other_cuda(locked: Mapping[str, str]) -> list[str]:
    """Packages of NVIDIA's for another CUDA, by their name, or by their version."""
    wrong = []
    for name, version in locked.items():
        if name.startswith("nvidia-cutlass-dsl-libs-"):
            continue  # its libraries come for both versions, and the one that fits is loaded
        other = re.search(r"-cu(\d+)$", name)
        if other and other[1] != CUDA:
            wrong.append(f"expected packages for CUDA {CUDA}, found {name}")
        if name == "cuda-bindings" and version.split(".")[0] != CUDA:
            wrong.append(f"expected {name} for CUDA {CUDA}, found {version}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
