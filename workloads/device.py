"""What this machine has, without loading torch: GPUs by NVML, host memory, processors.

Every count honours the limits of this process: CUDA_VISIBLE_DEVICES, cgroups, affinity.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.processes import memory_limit

MIB, GIB = 1 << 20, 1 << 30  # bytes


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or one MIG slice of it, as this process may use it; sizes in bytes."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    capability: tuple[int, int]

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU, made by MIG."""
        return self.uuid.startswith("MIG-")

    @property
    def has_bf16(self) -> bool:
        """Whether its tensor cores compute in bf16 (Ampere and later)."""
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver's own version and the newest CUDA it serves."""

    version: str
    cuda: tuple[int, int]


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory: installed, free for new work, and the control group's limit."""

    total: int
    available: int
    limit: int | None

    @property
    def usable(self) -> int:
        """Bytes that this process may use in all."""
        return min(self.total, self.limit) if self.limit else self.total


@dataclass(frozen=True)
class Machine:
    """All of the above."""

    gpus: tuple[Gpu, ...]
    driver: Driver | None
    memory: HostMemory
    shared_memory: int
    cpus: int


def machine(env: Mapping[str, str] = os.environ) -> Machine:
    """Read all facts of this machine."""
    return Machine(gpus(env), driver(), host_memory(), shared_memory(), cpu_count())


def gpus(env: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that CUDA will show to this process, in CUDA_VISIBLE_DEVICES' order.

    Empty where there is no driver. Without CUDA_VISIBLE_DEVICES the order is that of the bus,
    which CUDA follows too where CUDA_DEVICE_ORDER=PCI_BUS_ID is set or all GPUs are alike.
    """
    with _nvml() as nvml:
        if nvml is None:
            return ()
        found = [gpu for number in range(_count(nvml)) if (gpu := _describe(nvml, number))]
        chosen = visible(found, env.get("CUDA_VISIBLE_DEVICES"), lambda uuid: _slice(nvml, uuid))
        return _enumerated(nvml, chosen)


def gpu_count(env: Mapping[str, str] = os.environ) -> int:
    """How many GPUs a training here may use; none where torch is built for CPUs."""
    found = len(gpus(env))
    return 0 if found and _torch_is_for_cpus() else found


def _torch_is_for_cpus() -> bool:
    from importlib import metadata

    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def driver() -> Driver | None:
    """The NVIDIA driver, None where none answers."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
            version = _text(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError:
            return None
        return Driver(version, (cuda // 1000, cuda % 1000 // 10))


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML while it is open; None where the library or the driver is missing."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _count(nvml: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return 0


def _describe(nvml: Any, number: int) -> Gpu | None:
    """A GPU by its number; None for one that does not answer, as when it has fallen off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        total, free = _memory(nvml, handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return None
    return Gpu(number, _text(uuid), _text(name), total, free, (int(major), int(minor)))


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """Total and free bytes; those of the host where a GPU has none of its own (GB10, Jetson)."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        host = host_memory()
        return host.usable, host.available
    return int(memory.total), int(memory.free)


def _enumerated(nvml: Any, chosen: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """CUDA's rule for MIG: a GPU that is cut up stands for its first slice, a process sees one
    slice only, and no whole GPU beside it."""
    found = [_first_slice(nvml, gpu) if _is_cut_up(nvml, gpu) else gpu for gpu in chosen]
    here = [gpu for gpu in found if gpu is not None]
    return tuple([gpu for gpu in here if gpu.is_slice][:1] or here)


def _is_cut_up(nvml: Any, gpu: Gpu) -> bool:
    if gpu.is_slice:
        return False
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByIndex(gpu.index))
    except nvml.NVMLError:
        return False  # most cards know no MIG
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _first_slice(nvml: Any, gpu: Gpu) -> Gpu | None:
    """The first of a GPU's slices; None where none was made."""
    handle = nvml.nvmlDeviceGetHandleByIndex(gpu.index)
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            return _slice(nvml, _text(nvml.nvmlDeviceGetUUID(part)))
        except nvml.NVMLError:
            continue  # slices keep their numbers when others go
    return None


def visible(
    found: Sequence[Gpu],
    wanted: str | None,
    slice_of: Callable[[str], Gpu | None] = lambda uuid: None,
) -> tuple[Gpu, ...]:
    """CUDA's rule: entries in order, up to the first that names no GPU; none if one comes twice.

    wanted: CUDA_VISIBLE_DEVICES, None where it is not set. slice_of: a MIG slice by its UUID.
    """
    if wanted is None:
        return tuple(found)
    chosen: list[Gpu] = []
    for entry in wanted.split(","):
        gpu = _named(found, entry.strip(), slice_of)
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def _named(found: Sequence[Gpu], entry: str, slice_of: Callable[[str], Gpu | None]) -> Gpu | None:
    """A GPU by its number, the start of its UUID, or a MIG slice by its UUID."""
    if entry.isdecimal():
        return next((gpu for gpu in found if gpu.index == int(entry)), None)
    if entry.startswith("MIG-"):
        return slice_of(entry)
    matching = [gpu for gpu in found if entry and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _slice(nvml: Any, uuid: str) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        total, free = _memory(nvml, handle)
        capability = nvml.nvmlDeviceGetCudaComputeCapability(parent)
        name = _text(nvml.nvmlDeviceGetName(handle))
        number = int(nvml.nvmlDeviceGetIndex(parent))
    except nvml.NVMLError:
        return None
    major, minor = (int(part) for part in capability)
    return Gpu(number, uuid, name, total, free, (major, minor))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def host_memory() -> HostMemory:
    """Host memory as the kernel and the control group report it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
    return HostMemory(
        kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024, memory_limit()
    )


def shared_memory() -> int:
    """Bytes of /dev/shm, which loader processes and NCCL use to pass data; 0 without it."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return space.f_blocks * space.f_frsize


def cpu_count() -> int:
    """Processors this process may use: its affinity, and the control group's share of time."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(allowed, int(quota))) if quota else allowed


def _cpu_quota() -> float | None:
    """CPU limit of the control group in processors, None without one."""
    try:
        limit, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().strip().partition(" ")
    except OSError:
        return _cpu_quota_v1()
    return int(limit) / int(period) if limit.isdecimal() else None


def _cpu_quota_v1() -> float | None:
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 else None
