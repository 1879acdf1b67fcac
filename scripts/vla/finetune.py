"""`python3 finetune.py [FLAG…]`: what many guides call fine-tuning, done by `tatara train`.

Under torchrun the first rank of every node starts it, with the numbers of ranks and nodes that
torchrun was told; the others have nothing to do, as tatara starts its own.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import finetune_config

PROFILE = os.environ.get("TATARA_PROFILE") or "profiles/vla.yaml"
# What torchrun hands its ranks, and tatara finds out by itself.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK",
             "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
             "OMP_NUM_THREADS")  # fmt: skip


def root() -> Path:
    """The folder with profiles/, above this file."""
    return next(
        folder for folder in Path(__file__).resolve().parents if (folder / "profiles").is_dir()
    )


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of `tatara train`, with torchrun's ranks and nodes in its own names."""
    found = {name: value for name, value in env.items() if name not in _TORCHRUN}
    found = {name: value for name, value in found.items() if not name.startswith("TORCHELASTIC_")}
    if "LOCAL_WORLD_SIZE" in env:
        found["NPROC_PER_NODE"] = env["LOCAL_WORLD_SIZE"]
    if int(env.get("GROUP_WORLD_SIZE", "1")) > 1:
        found |= {"NNODES": env["GROUP_WORLD_SIZE"], "NODE_RANK": env["GROUP_RANK"]}
        found |= {name: env[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    return found


def run(*words: str) -> None:
    """Become the command, in the folder with profiles/, after printing it."""
    print("tatara", *words, flush=True)
    os.chdir(root())
    command = [sys.executable, "-m", "workloads.cli", *words]
    os.execve(sys.executable, command, environment(os.environ))


if __name__ == "__main__":
    if os.environ.get("LOCAL_RANK", "0") != "0":
        sys.exit(0)
    run("train", PROFILE, *finetune_config.flags(), *sys.argv[1:])
