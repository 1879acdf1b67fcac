"""Facts of a run's start: config.json and manifest.json."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.json_files import read_json
from workloads.run.directory import FORMAT, Run, json_ready
from workloads.run.integrity import write_atomically

if TYPE_CHECKING:
    from workloads.config.merge import Provenance
    from workloads.config.sections import Profile

_PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
    "liger-kernel",
    "kernels",
    "flash-attn",
    "vllm",
    "deepspeed",
    "wandb",
]

# What the planner chose for the GPUs here and why, in the environment of the job.
CHOICE = "TATARA_CHOICE"


def start(run: Run, config: "Profile", provenance: "Provenance", facts: dict[str, Any]) -> None:
    """Write a new run's config with provenance and its manifest."""
    run.make()
    run.end_cut_lines()
    dump = {"format": FORMAT, "config": config.model_dump(), "provenance": dict(provenance)}
    write_atomically(run.path / "config.json", json.dumps(dump, indent=1, ensure_ascii=False))
    write_manifest(run, {"profile": config.name, "workload": config.workload, **facts})


def write_manifest(run: Run, facts: dict[str, Any]) -> None:
    """Merge facts into the manifest: code, versions, host, data, devices."""
    path = run.path / "manifest.json"
    known = read_json(path) if path.is_file() else _birth()
    text = json.dumps(json_ready({**known, **facts}), indent=1, ensure_ascii=False)
    write_atomically(path, text)


def _birth() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "git": code_state(),
        "image": os.environ.get("TATARA_IMAGE"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> dict[str, Any]:
    """Commit and whether files differ from it; empty outside a checkout or without git."""
    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "rev-parse", "HEAD"]
        commit = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
        words = ["git", "-C", str(here), "status", "--porcelain", "-uno"]
        changed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "changed": bool(changed.stdout.strip())}
