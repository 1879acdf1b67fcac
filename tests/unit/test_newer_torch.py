"""What a GPU machine's older torch lacks is not called: torch 2.11 is what such machines have.

`bench/gpu/run.sh` runs the product's own code there. The list was made by comparing the public
names of both builds, and the parameters of what both have: torch, its Tensor, accelerator, cuda,
distributed, fsdp, device_mesh, nn, optim, amp, autograd, compiler, library, utils.
"""

import ast
import inspect
import re
from collections.abc import Iterator
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
    "empty_host_cache",
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
# Parameters of torch 2.12 and 2.13, by the function or class that got them.
NEWER_PARAMETERS = {
    "barrier": {"timeout"},
    "BatchNorm1d": {"bias"},
    "BatchNorm2d": {"bias"},
    "BatchNorm3d": {"bias"},
    "compile": {"isolate_recompiles", "name", "recompile_limit", "shapes_spec"},
    "DistributedDataParallel": {"batched_grad_copy", "forward_sync_buffers"},
    "fully_shard": {"dp_mesh_dims"},
    "graph": {"check_input_liveness", "enable_annotations"},
    "GroupNorm": {"bias"},
    "infer_schema": {"tags"},
    "nested_compile_region": {"max_reuse_entries", "reuse_hash_fn"},
    "new_group": {"sort_ranks"},
    "split_group": {"backend"},
    "SyncBatchNorm": {"bias"},
}
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


def newer_arguments(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, function and argument of each call that gives a parameter newer than torch 2.11."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), keywords=given):
                for keyword in given:
                    if keyword.arg in NEWER_PARAMETERS.get(name, ()):
                        yield node.lineno, name, str(keyword.arg)


def test_no_parameter_newer_than_torch_2_11_is_given() -> None:
    found = [
        (str(path.relative_to(ROOT)), *call)
        for folder in ("workloads", "bench")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in newer_arguments(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
    given = ast.parse("dist.new_group([0], sort_ranks=True); fully_shard(model, mesh=mesh)")
    assert list(newer_arguments(given)) == [(1, "new_group", "sort_ranks")]


def test_the_list_is_of_names_that_there_are() -> None:
    """A name that this torch lacks was never newer; another torch asks for another list."""
    assert torch.__version__.startswith("2.13.")
    assert hasattr(torch.nn.functional, "linear_cross_entropy")
    assert hasattr(torch.distributed, "reduce_scatter_single")
    assert "sort_ranks" in inspect.signature(torch.distributed.new_group).parameters
