"""What the card does at best, and what NVML says of it: the roof for every other figure."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.part import Report
from workloads import device
from workloads.device import GIB
from workloads.monitor.reading.hardware import Hardware
from workloads.plan.cards import find_card


def card(report: Report) -> None:
    """Rates of matrix products and copies; the card by NVML while it works, and by the doctor."""
    size = 8192 if report.on_gpu else 256
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        rate = _product_rate(report, size, dtype)
        report.figures[f"matrix product, {name}: TFLOP/s"] = round(rate / 1e12, 3)
        report.check(f"matrix product in {name}", rate > 0, f"{rate / 1e12:.3f} TFLOP/s")
    copied = _copy_rate(report, _room(4 * GIB) if report.on_gpu else (8 << 20))
    report.figures["copy on the card: GB/s read and written"] = round(copied / 1e9, 1)
    report.check("copy", copied > 0, f"{copied / 1e9:.1f} GB/s")
    _nvml(report)
    command = [sys.executable, "-m", "workloads.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = (done.stdout + done.stderr)[-300:]
    # 1 where the doctor finds something; it answers in any case.
    answers = done.returncode in (0, 1, 2) and not isinstance(found, str)
    report.check("`tatara doctor` answers", answers, found if not answers else done.returncode)


def _room(most: int) -> int:
    """So many bytes, or what a small card has room for beside them."""
    return min(most, torch.cuda.get_device_properties(0).total_memory // 4)


def _product_rate(report: Report, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a square product of random numbers, the median of twenty."""
    left, right = (torch.randn(size, size, device=report.device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(report, lambda: torch.mm(left, right))


def _copy_rate(report: Report, size: int) -> float:
    """Bytes read and written a second by a copy on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=report.device).random_()
    target = torch.empty_like(source)
    return 2 * size / _seconds(report, lambda: target.copy_(source))


def _seconds(report: Report, work: Callable[[], Any], times: int = 20) -> float:
    def synchronise() -> None:
        if report.on_gpu:
            torch.cuda.synchronize()

    found = []
    for turn in range(times + 3):
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        if turn >= 3:
            found.append(time.perf_counter() - start)
    return sorted(found)[times // 2]


def _nvml(report: Report) -> None:
    """The monitor's and the planner's readings, beside torch's own."""
    hardware = Hardware()
    if not report.on_gpu:
        report.check("without NVML there are no GPUs", hardware.read().gpus == ())
        hardware.close()
        return
    held = torch.empty(_room(8 * GIB), dtype=torch.uint8, device="cuda").fill_(1)
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        torch.mm(left, left)
        torch.cuda.synchronize()
    (gpu, *_) = device.gpus()  # the first that this process may use
    reading = next(found for found in hardware.read().gpus if found.index == gpu.index)
    hardware.close()
    report.figures["NVML while it works"] = str(reading)
    values = {"it works": (reading.utilisation, 20), "what is held": (reading.used, held.numel()),
              "power": (reading.power, 0), "temperature": (reading.temperature, 0)}  # fmt: skip
    for name, (value, least) in values.items():
        if value is None:  # of a slice, a virtual or an integrated GPU
            report.note(f"NVML: {name}: the driver does not tell")
        else:
            report.check(f"NVML: {name}", value > least, value)
    properties = torch.cuda.get_device_properties(0)
    report.check("NVML: the name that torch says", gpu.name == properties.name, gpu.name)
    is_same = gpu.capability == (properties.major, properties.minor)
    report.check("NVML: the capability that torch says", is_same, gpu.capability)
    known = find_card(gpu.name)
    if gpu.is_slice:
        report.note("a slice of a GPU is no card that the planner knows")
    else:
        report.check("the planner knows the card", known is not None, known and known.name)
    report.figures["driver"] = str(device.driver())
