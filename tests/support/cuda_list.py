"""Code that only a GPU, or a library for GPUs, takes: as it is found in the tree, and as
docs/hardware.md lists it, each function with a test that runs it with a stand-in.
"""

import ast
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("pynvml", "bitsandbytes", "vllm", "deepspeed", "kernels", "flash_attn", "liger_kernel")
# A library, or a module of it, as text: to look for it, or to start it as a process.
MODULE = re.compile(rf"({'|'.join(LIBRARIES)})(\.\w+)*\.?")
# What stands for a library by another name: in transformers, in a setting's value.
STANDS_FOR = {
    "is_flash_attn_2_available": "kernels",
    "BitsAndBytesConfig": "bitsandbytes",
    "is_deepspeed_enabled": "deepspeed",
    "vllm_colocate": "vllm",
    "vllm_server": "vllm",
    "flash_attention_2": "flash_attention_2",
    "flash": "flash_attention_2",
    "libcuda.so.1": "CUDA driver",
}
# What declares options of a command names libraries and asks for none; so do the schema's checks
# and the planner's, and what acts on fake tensors needs no card.
OPTIONS = ("add_arguments", "add_engine")
WITHOUT_GPU = re.compile(r"workloads/((\w+/)?config(\.py|/)|engine/fake_step/|plan/)")
ROW = re.compile(r"^\| `(workloads/\S+)` `(\w+)` \| ([^|]+) \| `(tests/[^`:]+)::(\w+)` \|$", re.M)
# These run the function in a process of its own, which is not followed.
APART = ("test_a_rank_alone_on_a_gpu_agrees_with_itself",)

Branch = tuple[str, str]  # file and function


def asks(function: ast.AST) -> Iterator[tuple[str, int]]:
    """What a function asks of a GPU or of a library for GPUs, and on which line."""
    for node in ast.walk(function):
        for what in _asked(node):
            yield what, node.lineno  # type: ignore[attr-defined]


def _asked(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="torch"), attr="cuda" | "accelerator" as name):
            yield f"torch.{name}"
        case ast.Attribute(attr=name) | ast.Name(id=name) if name in STANDS_FOR:
            yield STANDS_FOR[name]
        case ast.Attribute(attr=name) if name.startswith("nvml"):
            yield "NVML"
        case ast.Import(names=names):
            yield from _libraries([alias.name for alias in names])
        case ast.ImportFrom(module=str(module), level=0):
            yield from _libraries([module])
        case ast.Constant(value=str(text)):
            if text in STANDS_FOR:
                yield STANDS_FOR[text]
            if module := MODULE.fullmatch(text):
                yield module[1]
            if "nccl" in text.lower() and len(text) < 60:
                yield "NCCL"


def _libraries(modules: list[str]) -> Iterator[str]:
    """Libraries among imported modules, or those that a module of another package is for."""
    for module in modules:
        if not module.startswith("workloads."):
            yield from (name for name in LIBRARIES if name in module)


@cache
def branches() -> dict[Branch, dict[str, set[int]]]:
    """Every such function: what it asks, and on which lines."""
    found: dict[Branch, dict[str, set[int]]] = {}
    for path in sorted((ROOT / "workloads").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if WITHOUT_GPU.match(name):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for what, line in asks(node) if node.name not in OPTIONS else ():
                    found.setdefault((name, node.name), {}).setdefault(what, set()).add(line)
    return found


@cache
def listed() -> dict[Branch, tuple[set[str], str, str]]:
    """The rows of docs/hardware.md: what each function asks, the file and name of its test."""
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    return {
        (row[1], row[2]): (set(row[3].split(", ")), row[4], row[5]) for row in ROW.finditer(text)
    }


def promised(test_file: str, test: str) -> list[Branch]:
    """The functions that a test is listed to reach."""
    return [
        branch
        for branch, (_, file, name) in listed().items()
        if (file, name) == (test_file, test) and name not in APART
    ]


@contextmanager
def followed(wanted: list[Branch]) -> Iterator[list[Branch]]:
    """Follow this process, in all its threads; gives those whose asking lines did not run.

    The list is filled at the end of the context.
    """
    lines = {branch: set().union(*branches()[branch].values()) for branch in wanted}
    ran: dict[str, set[int]] = {str(ROOT / file): set() for file, _ in wanted}
    missed: list[Branch] = []

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return note if frame.f_code.co_filename in ran else None

    def note(frame: FrameType, event: str, argument: Any) -> Any:
        ran[frame.f_code.co_filename].add(frame.f_lineno)
        return note

    before = sys.gettrace()
    sys.settrace(enter)
    threading.settrace(enter)
    try:
        yield missed
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
    missed += [branch for branch in wanted if not lines[branch] & ran[str(ROOT / branch[0])]]
