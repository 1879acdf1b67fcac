"""What this machine has: counted as CUDA and the kernel would count it, without torch."""

import os
import subprocess
import sys

import pytest

from workloads import device
from workloads.device import Gpu, HostMemory, visible

pytestmark = pytest.mark.unit
GPUS = [
    Gpu(number, f"GPU-{letter}{number}-77", "NVIDIA GeForce RTX 4090", 24 << 30, 20 << 30, (8, 9))
    for number, letter in enumerate("aabc")
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("2", [2]),
        ("3,1", [3, 1]),
        (" 1 , 0 ", [1, 0]),
        ("1,9,0", [1]),  # what stands behind a wrong entry does not count
        ("0,0", []),
        ("GPU-b", [2]),
        ("GPU-a", []),  # two of that name
        ("GPU-a1,GPU-c", [1, 3]),
        ("none", []),
    ],
)
def test_visible_devices_follow_cudas_rule(wanted: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, wanted)] == expected


def test_without_a_driver_there_are_no_gpus() -> None:
    if device.driver() is not None:
        pytest.skip("this machine has an NVIDIA driver")
    assert device.gpus({}) == () and device.gpu_count({"CUDA_VISIBLE_DEVICES": "0"}) == 0


def test_what_a_gpu_can_do() -> None:
    assert GPUS[0].has_bf16
    assert not Gpu(0, "GPU-v", "Tesla V100", 1, 1, (7, 0)).has_bf16


def test_host_memory_and_processors() -> None:
    memory = device.host_memory()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert abs(memory.total - pages) <= 0.05 * pages
    assert 0 < memory.available <= memory.total
    assert 1 <= device.cpu_count() <= len(os.sched_getaffinity(0))
    assert device.shared_memory() >= 0


def test_the_tighter_limit_counts() -> None:
    assert HostMemory(100, 50, 30).usable == 30
    assert HostMemory(100, 50, None).usable == 100
    assert HostMemory(100, 50, 900).usable == 100


def test_affinity_is_honoured() -> None:
    one = sorted(os.sched_getaffinity(0))[0]
    code = (
        f"import os, sys; os.sched_setaffinity(0, [{one}]); from workloads import device; "
        "print(device.cpu_count(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
