"""Readings of this machine, current and past: GPUs by NVML, processors and memory."""

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workloads.monitor.reading.curve import Curve


@dataclass(frozen=True)
class GpuReading:
    """One GPU; None for values that its driver does not report (a MIG slice has no power)."""

    index: int
    name: str
    utilisation: int | None = None  # per cent of the last moments in which a kernel ran
    used: int | None = None  # bytes
    total: int | None = None
    temperature: int | None = None  # degrees Celsius
    power: float | None = None  # watts
    power_limit: float | None = None


@dataclass(frozen=True)
class MachineReading:
    """The machine; `cpu` in per cent of all processors, None for the first reading."""

    host: str
    gpus: tuple[GpuReading, ...]
    cpu: float | None
    cpus: int
    memory_used: int
    memory_total: int


_HISTORY = 360  # points at most of each curve of this machine
_LEAST_SPAN = 0.1  # CPU seconds of all processors, below which a share means nothing


class Hardware:
    """Opens NVML once and reads it repeatedly; without GPUs only processors and memory.

    `history` has all readings so far: a step of its curves is a second.
    """

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._nvml = _opened()
        self._before = _times(psutil)
        self._cpu: float | None = None
        self.history: dict[str, Curve] = {}

    def read(self) -> MachineReading:
        memory = self._psutil.virtual_memory()
        self._measure()
        machine = MachineReading(
            host=socket.gethostname(),
            gpus=gpus(self._nvml) if self._nvml is not None else (),
            cpu=self._cpu,
            cpus=self._psutil.cpu_count() or 1,
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
        )
        self._remember(machine)
        return machine

    def _remember(self, machine: MachineReading) -> None:
        """Keep what was measured as curves over whole seconds since 1970."""
        values: dict[str, float | None] = {
            "CPU (%)": machine.cpu,
            "memory (GiB)": machine.memory_used / 2**30,
        }
        for gpu in machine.gpus:
            values[f"GPU {gpu.index} (%)"] = gpu.utilisation
            values[f"GPU {gpu.index} memory (GiB)"] = gpu.used and gpu.used / 2**30
        second = int(time.time())
        for name, value in values.items():
            if value is not None:
                self.history.setdefault(name, Curve(_HISTORY)).add(second, value)

    def _measure(self) -> None:
        """Measure CPU use; psutil's own percentage is per thread, and a server has many."""
        busy, whole = _times(self._psutil)
        span = whole - self._before[1]
        if span >= _LEAST_SPAN:
            self._cpu = min(100.0, max(0.0, 100 * (busy - self._before[0]) / span))
            self._before = busy, whole

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None


def _times(psutil: Any) -> tuple[float, float]:
    """Seconds that the processors were busy, and all their seconds, since the machine started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    whole = sum(times[:8])  # time for guests is included in user and nice
    return whole - idle, whole


def _opened() -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpus(nvml: Any) -> tuple[GpuReading, ...]:
    """All GPUs that answer, in the driver's order."""
    try:
        count = int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return ()
    found = (_gpu(nvml, index) for index in range(count))
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(nvml: Any, index: int) -> GpuReading | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return None  # it has fallen off the bus

    def ask(question: Callable[..., Any], *words: Any) -> Any:
        try:
            return question(handle, *words)
        except nvml.NVMLError:
            return None

    rates, memory = ask(nvml.nvmlDeviceGetUtilizationRates), ask(nvml.nvmlDeviceGetMemoryInfo)
    power, limit = ask(nvml.nvmlDeviceGetPowerUsage), ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    return GpuReading(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        utilisation=None if rates is None else int(rates.gpu),
        used=None if memory is None else int(memory.used),
        total=None if memory is None else int(memory.total),
        temperature=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power=None if power is None else power / 1000,
        power_limit=None if limit is None else limit / 1000,
    )
