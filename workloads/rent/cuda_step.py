"""Runs on the machine, by its own python3, before anything is installed: does CUDA work?

    python3 - GPUS

nvidia-smi only talks to the driver: on machines where it looked fine every CUDA program ended with
error 802. This takes a context on each GPU, writes memory and reads it back. Only the standard
library, Python 3.8 or later; ends with 1 and one sentence where something fails.
"""

import ctypes
import sys
from ctypes import byref

_SIZE = ctypes.c_size_t(1 << 20)  # bytes that are written
_MARK = 0x5A


def fault(wanted: int) -> str:
    """The error in one sentence; empty where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no CUDA driver: {error}"
    count = ctypes.c_int()
    if code := cuda.cuInit(0) or cuda.cuDeviceGetCount(byref(count)):
        return f"CUDA error {code}"
    if count.value < wanted:
        return f"expected {wanted} GPUs that CUDA can use, found {count.value}"
    for number in range(count.value):
        if problem := _fault_of(cuda, number):
            return f"GPU {number}: {problem}"
    return ""


def _fault_of(cuda: ctypes.CDLL, number: int) -> str:
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    back = ctypes.create_string_buffer(_SIZE.value)
    code = (
        cuda.cuDeviceGet(byref(device), number)
        or cuda.cuDevicePrimaryCtxRetain(byref(context), device)
        or cuda.cuCtxSetCurrent(context)
        or cuda.cuMemAlloc_v2(byref(memory), _SIZE)
        or cuda.cuMemsetD8_v2(memory, _MARK, _SIZE)
        or cuda.cuMemcpyDtoH_v2(back, memory, _SIZE)
    )
    if code:
        return f"CUDA error {code}"
    cuda.cuMemFree_v2(memory)
    cuda.cuDevicePrimaryCtxRelease_v2(device)
    if back.raw != bytes([_MARK]) * _SIZE.value:
        return "its memory gave back other bytes than were written"
    return ""


if __name__ == "__main__":
    problem = fault(int(sys.argv[1]))
    if problem:
        sys.exit(problem)
    print("every GPU computes")
