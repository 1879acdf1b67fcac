"""Code that only a GPU, or a library for GPUs, takes: all of it is listed, and reached by a test.

docs/hardware.md holds the list: a new branch without a row, or a row without its test, fails here.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

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
# What declares options of a command names libraries and asks for none; so do the schema's checks,
# and what acts on fake tensors needs no card.
OPTIONS = ("add_arguments", "add_engine")
WITHOUT_GPU = re.compile(r"workloads/(\w+/)?config(\.py|/)|workloads/engine/fake_step/")
ROW = re.compile(r"^\| `(workloads/\S+)` `(\w+)` \| ([^|]+) \| `(tests/[^`:]+)::(\w+)` \|$", re.M)


def asks(function: ast.AST) -> Iterator[str]:
    """What a function asks of a GPU or of a library for GPUs."""
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda"):
                yield "torch.cuda"
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


def branches() -> dict[tuple[str, str], set[str]]:
    """File and function of every such place, and what it asks."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted((ROOT / "workloads").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if WITHOUT_GPU.match(name):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name not in OPTIONS and (asked := set(asks(node))):
                found.setdefault((name, node.name), set()).update(asked)
    return found


def test_every_branch_is_listed_with_a_test_that_is_there() -> None:
    listed = {
        (row[1], row[2]): row for row in ROW.finditer((ROOT / "docs/hardware.md").read_text())
    }
    found = branches()
    assert sorted(set(found) - set(listed)) == [], "add a row to docs/hardware.md, and a test"
    assert sorted(set(listed) - set(found)) == [], "take the row out of docs/hardware.md"
    for key, row in listed.items():
        assert set(row[3].split(", ")) == found[key], f"{key} asks for {sorted(found[key])}"
        test = (ROOT / row[4]).read_text(encoding="utf-8")
        assert f"def {row[5]}(" in test, f"{row[4]} has no {row[5]}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.cuda.empty_cache()", "torch.cuda"),
        ("import vllm.lora", "vllm"),
        ("from trl.generation.vllm_client import VLLMClient", "vllm"),
        ("run([python, '-m', 'vllm.entrypoints.cli.main'])", "vllm"),
        ("find_spec('deepspeed')", "deepspeed"),
        ("if engine.engine == 'vllm_server': pass", "vllm"),
        ("BitsAndBytesConfig(load_in_8bit=True)", "bitsandbytes"),
        ("handle = nvml.nvmlDeviceGetHandleByIndex(0)", "NVML"),
        ("env['NCCL_SOCKET_IFNAME'] = name", "NCCL"),
        ("ctypes.CDLL('libcuda.so.1')", "CUDA driver"),
        ("from workloads.engine.generate.vllm import lora_rank", None),
        ("tell('vllm is not needed here')", None),
    ],
)
def test_a_branch_is_seen(line: str, expected: str | None) -> None:
    assert set(asks(ast.parse(line))) == ({expected} if expected else set())
