"""Code that only a GPU, or a library for GPUs, takes: all of it is listed, and reached by a test.

docs/hardware.md holds the list: a new branch without a row, or a row without its test, fails here.
"""

import ast
import sys
from types import ModuleType

import pytest

from tests.support.cuda_list import ROOT, asks, branches, followed, listed

pytestmark = pytest.mark.unit


def test_every_branch_is_listed_with_a_test_that_is_there() -> None:
    """That each test runs its function is held by tests/unit/conftest.py."""
    found = branches()
    assert sorted(set(found) - set(listed())) == [], "add a row to docs/hardware.md, and a test"
    assert sorted(set(listed()) - set(found)) == [], "take the row out of docs/hardware.md"
    for branch, (asked, file, name) in listed().items():
        assert asked == set(found[branch]), f"{branch} asks for {sorted(found[branch])}"
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text, f"{file} has no {name}"
        assert file.startswith("tests/unit/"), f"{file}: not held to run {branch}"


def test_a_test_that_reaches_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads import device

    branch = ("workloads/device.py", "driver")
    monkeypatch.setitem(sys.modules, "pynvml", without_driver())
    with followed([branch]) as missed:
        device.gpu_count({})
    assert missed == [branch]
    with followed([branch, ("workloads/device.py", "_nvml")]) as missed:
        device.driver()
    # Without a driver it does not come to the lines that ask.
    assert missed == [branch]


def without_driver() -> ModuleType:
    class NVMLError(Exception):
        pass

    def init() -> None:
        raise NVMLError

    library = ModuleType("pynvml")
    library.NVMLError, library.nvmlInit = NVMLError, init  # type: ignore[attr-defined]
    return library


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.cuda.empty_cache()", "torch.cuda"),
        ("torch.accelerator.is_available()", "torch.accelerator"),
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
    assert {what for what, _ in asks(ast.parse(line))} == ({expected} if expected else set())
