"""Which errors mean that a GPU's memory is full."""

import torch

# Memory that torch's allocator does not hand out itself: the driver's, cuBLAS', cuDNN's, NCCL's.
# Their errors are RuntimeErrors of several classes, told apart by their text alone.
_SAID = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that a GPU's memory is full, whoever asked for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)
