"""Errors that say that a GPU's memory is full, in the words of torch 2.11 and its libraries."""

import pytest
import torch

from workloads.engine.memory_errors import is_out_of_memory

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be", 2), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (
            torch.distributed.DistBackendError(
                "NCCL error: unhandled cuda error, NCCL version 2.28.9\nLast error:\n"
                "Cuda failure 2 'out of memory'"
            ),
            True,
        ),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
            False,
        ),
        (RuntimeError("CUDA error: no kernel image is available for execution"), False),
        (MemoryError("out of memory"), False),
        (None, False),
    ],
)
def test_whoever_asked_for_the_memory(error: BaseException | None, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
