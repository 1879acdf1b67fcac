"""Compares facts that decide a training's result between nodes, before the first step."""

import hashlib
import importlib.metadata
import platform
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import workloads
from workloads.engine import distributed
from workloads.errors import UserError
from workloads.run.manifest import code_state

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "datasets")
_CHUNK = 8 << 20
_WEIGHTS = (".safetensors",)


def check_alike(facts: Callable[[], Mapping[str, str]]) -> None:
    """Raise UserError on all ranks where a node's facts differ from node 0's, naming the first.

    Called by all ranks together. facts: name → value on this node, as text; called on the first
    rank of each node, and only where there are several nodes.
    """
    if len(set(distributed.gather(distributed.node()))) == 1:
        return
    mine = dict(facts()) if distributed.is_first_of_node() else None
    found = distributed.gather((distributed.node(), socket.gethostname(), mine))
    nodes = {node: (host, own) for node, host, own in found if own is not None}
    host_of_0, expected = nodes[0]
    for node, (host, own) in sorted(nodes.items()):
        for name in expected:
            if _compared(own.get(name, "none")) != _compared(expected[name]):
                raise UserError(
                    f"expected the same {name} on all nodes, found {own.get(name)} on node {node} "
                    f"({host}) and {expected[name]} on node 0 ({host_of_0}); give every node the "
                    f"same {name}"
                )


def _compared(fact: str) -> str:
    """A fact without its remark in brackets, which is only for the reader."""
    return fact.partition(" (")[0]


def software() -> dict[str, str]:
    """The code of this package, Python, and the libraries that compute."""
    package = Path(workloads.__file__).parent
    state = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        state.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    git = code_state()
    commit = git["commit"][:7] if git else "unknown"
    changed = ", changed" if git.get("changed") else ""
    facts = {"code": f"{state.hexdigest()[:12]} (commit {commit}{changed})"}
    facts["Python"] = platform.python_version()
    for name in _PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "none"
    return facts


def model_files(folder: Path, weights: bool) -> dict[str, str]:
    """Digests of a model's weights, and of its config and tokenizer, by their contents.

    Weights from the hub are stored under their digest, which is used.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    heavy = [path for path in files if path.suffix in _WEIGHTS] if weights else []
    light = [
        path
        for path in files
        if path.suffix not in _WEIGHTS and path.suffix != ".md" and path.name != "source.json"
    ]
    return {
        "weights": _digest(heavy) if heavy else "none",
        "config and tokenizer": _digest(light),
    }


def _digest(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        target = path.resolve().name
        if path.is_symlink() and len(target) == 64:
            whole.update(f"{path.name} {target}".encode())
            continue
        state = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
        whole.update(f"{path.name} {state.hexdigest()}".encode())
    return whole.hexdigest()[:12]
