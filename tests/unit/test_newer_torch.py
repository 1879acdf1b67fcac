"""What a GPU machine's older torch lacks is not called: torch 2.11 is what such machines have.

`bench/gpu/run.sh` runs the product's own code there. The list was made by comparing the public
names of both builds: torch, its Tensor, cuda, distributed, fsdp, nn, optim, amp, compiler, utils.
"""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
# Of torch 2.12 and 2.13.
NEWER = (
    "all_gather_single",
    "blas_workspace_size",
    "caching_allocator_disabled",
    "const_data_ptr",
    "cublas_workspace_size",
    "cublaslt_workspace_size",
    "current_solver_handle",
    "DataParallelMeshDims",
    "enforce_grad_layout_policy",
    "get_default_backend",
    "is_ck_sdpa_available",
    "linear_cross_entropy",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "record_comm",
    "reduce_scatter_single",
    "set_default_backend",
    "swap_in_optimizer_params_and_state",
    "thread_safe_generator",
)
CALL = re.compile(rf"\b({'|'.join(NEWER)})\b")


def test_nothing_newer_than_torch_2_11_is_called() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[1]}"
        for folder in ("workloads", "bench")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := CALL.search(line))
    ]
    assert found == []


def test_the_list_is_of_names_that_there_are() -> None:
    """A name that this torch lacks was never newer; another torch asks for another list."""
    assert torch.__version__.startswith("2.13.")
    assert hasattr(torch.nn.functional, "linear_cross_entropy")
    assert hasattr(torch.distributed, "reduce_scatter_single")
