"""Host checks (all but GPUs): Python, memory, disk, network, folders, files, clock."""

import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from workloads import device
from workloads.device import GIB, MIB
from workloads.doctor.facts import SETUP, Facts
from workloads.findings import Finding, Level
from workloads.host.engine import Engine
from workloads.host.folders import existing, how_to_write, may_write
from workloads.host.ports import is_free
from workloads.host.programs import run_program

_OLDEST_PYTHON, _FIRST_TOO_NEW = (3, 11), (3, 13)
# NVIDIA's NCCL guide, "Troubleshooting": containers need --shm-size=1g; an engine gives 64 MiB.
_SHARED, _SHARED_BY_ENGINE = GIB, 64 * MIB
_FREE_AT_LEAST = GIB
_FIRST_YEAR = 2026  # this project's first commit is not older


def checks(facts: Facts) -> list[Finding]:
    """All checks of the host except GPUs."""
    found = [_python(facts), *_interfaces(facts), _shared_memory(facts), _disk(facts)]
    found += [
        _lasting(facts),
        _host_memory(facts),
        _ports(facts),
        _folders(facts),
        _user(facts),
        _dotenv(),
    ]
    found.append(_year())
    return [item for item in found if item is not None]


def _python(facts: Facts) -> Finding:
    version = sys.version_info[:3]
    found = ".".join(map(str, version))
    if facts.in_docker:
        return Finding("Python", "ok", f"{found}; the images bring their own")
    needed = "3.11 or 3.12, with the project's packages"
    if not _OLDEST_PYTHON <= version < _FIRST_TOO_NEW:
        other = run_program(["scripts/local_setup.sh", "--python"], facts.env)
        if other.is_good:
            found = f"{found}; set-up takes {other.out.strip()}"
            return Finding("Python", "warning", found, needed=needed, fix=SETUP)
        fix = (
            "install Python 3.11 or 3.12 with its venv module (Debian 12, Ubuntu 24.04: sudo "
            "apt-get install -y python3 python3-venv; elsewhere: uv python install 3.12, then "
            f"PYTHON=$(uv python find 3.12) {SETUP})"
        )
        return Finding("Python", "error", found, needed=needed, fix=fix)
    try:
        return Finding(
            "Python", "ok", f"{found} with torch {metadata.version('torch')}", needed=needed
        )
    except metadata.PackageNotFoundError:
        return Finding("Python", "warning", f"{found} without torch", needed=needed, fix=SETUP)


def _interfaces(facts: Facts) -> list[Finding]:
    """NCCL's and Gloo's network interface: one that exists where the ranks run."""
    bridged = facts.in_docker and any(not service.on_host_network for service in facts.services)
    there = ["eth0", "lo"] if bridged else [name for _, name in socket.if_nameindex()]
    found = []
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = facts.setting(name)
        if value and not interface_exists(value, there, exact=name.startswith("GLOO")):
            where = "in a container on its own network" if bridged else "on this machine"
            needed = f"one of {', '.join(there)}, {where}"
            fix = f"take {name} out of .env: `launch` finds the right one"
            found.append(Finding(name, "error", value, needed=needed, fix=fix))
    shown = [facts.setting(name) for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")]
    text = ", ".join(dict.fromkeys(filter(None, shown))) or "not set: chosen at the start of a run"
    return found or [Finding("network interface", "ok", text)]


def interface_exists(value: str, there: Iterable[str], exact: bool = False) -> bool:
    """NCCL's rule: names begin so, `=` wants the whole name, `^` takes all others; Gloo: exact."""
    there = list(there)
    left_out = value.startswith("^")
    whole = exact or value.lstrip("^").startswith("=")
    wanted = [part.strip() for part in value.lstrip("^=").split(",") if part.strip()]
    named = [
        name
        for name in there
        if any(name == part if whole else name.startswith(part) for part in wanted)
    ]
    return len(named) < len(there) if left_out else bool(named)


def _shared_memory(facts: Facts) -> Finding | None:
    """/dev/shm, through which ranks and loader processes pass data."""
    sizes = [
        service.shared_memory or _SHARED_BY_ENGINE for service in facts.services if service.trains
    ]
    if facts.in_docker and not sizes:
        return None
    size = min(sizes) if facts.in_docker else device.shared_memory()
    config = facts.config
    workers = config.train.workers if config else 0
    ranks = sum(node.ranks or 1 for node in facts.nodes) if facts.used_cards else 1
    shown = f"{size / MIB:.0f} MiB" if size < GIB else f"{size / GIB:.1f} GiB"
    if size >= _SHARED or (ranks < 2 and not workers):
        return Finding("/dev/shm", "ok", shown)
    level: Level = "error" if size <= _SHARED_BY_ENGINE else "warning"
    fix = "sudo mount -o remount,size=16g /dev/shm"
    if facts.in_docker:
        fix = "TATARA_SHM_SIZE=16gb in .env"
    elif Path("/.dockerenv").exists():
        fix = "start this container with --shm-size=16g"
    needed = f"1 GiB for {ranks} GPU ranks and {workers} loader processes each"
    return Finding("/dev/shm", level, shown, needed=needed, fix=fix)


def _disk(facts: Facts) -> Finding:
    place = existing(facts.outputs)
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free for {facts.outputs}"
    fix = f"free some on the file system of {place}, or set TATARA_OUTPUTS to another one"
    if free < _FREE_AT_LEAST:
        return Finding("disk", "error", found, needed="1 GiB at least", fix=fix)
    plan = facts.plan
    if plan is None or plan.total is None:
        return Finding("disk", "ok", found, needed="1 GiB at least; more is not planned")
    needed = f"{plan.disk / GIB:.1f} GiB for checkpoints and the final model, by the plan"
    if plan.disk > free:
        return Finding(
            "disk", "error", found, needed=needed, fix=f"{fix}; or checkpoints.keep_last=1"
        )
    return Finding("disk", "ok", found, needed=needed)


def _lasting(facts: Facts) -> Finding | None:
    """Warn where runs lie on a disk that ends with the machine or container; None elsewhere."""
    found = passing_disk(existing(facts.outputs), facts.env)
    if not found:
        return None
    if facts.env.get("TATARA_LEASE"):
        return Finding("disk that lasts", "ok", f"{found}; the lease copies the run home")
    fix = (
        "set TATARA_OUTPUTS to a volume that stays, copy the run away before the end "
        "(docs/renting.md), or export.push=saves"
    )
    needed = "a disk that outlives the machine"
    return Finding("disk that lasts", "warning", found, needed=needed, fix=fix)


_IN_MEMORY = ("tmpfs", "ramfs")
# Providers by the hour: the variable that marks them, and the folders that stay.
_LAMBDA = (Path("/etc/apt/sources.list.d/lambda-repository.list"), Path("/lambda/nfs"))
_PODS = {"RUNPOD_POD_ID": "/runpod-volume, or /workspace on a network volume"}


def passing_disk(
    place: Path,
    env: Mapping[str, str],
    mounts: Path = Path("/proc/self/mounts"),
    signs: Sequence[Path] = _LAMBDA,
) -> str:
    """Why files there end with the machine; empty where nothing indicates that.

    In memory, in a container's own layer, or on the local disk of a machine rented by the hour.
    """
    kind = file_system(place, mounts)
    if kind in _IN_MEMORY:
        return f"{place} is in memory ({kind}): a restart empties it"
    for name, stays in _PODS.items():
        if env.get(name) and kind == "overlay":
            return f"{place} is the pod's own layer, which ends with it; what stays: {stays}"
    if kind == "overlay":
        return f"{place} is a container's own layer, which ends with the container"
    if any(sign.exists() for sign in signs) and kind not in ("nfs", "nfs4", "virtiofs", "fuse"):
        return f"{place} is the local disk of a Lambda instance, which is erased at its end"
    return ""


def file_system(place: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that a folder is on; empty where that cannot be read."""
    try:
        rows = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    # A blank in a path is written as \040; of two at one place the later one is seen.
    points = [(row[1].replace("\\040", " "), row[2]) for row in rows if len(row) > 2]
    over = [(point, kind) for point, kind in points if place.is_relative_to(point)]
    return max(reversed(over), key=lambda mount: len(mount[0]))[1] if over else ""


def _host_memory(facts: Facts) -> Finding:
    memory = device.host_memory()
    size = memory.usable
    if facts.in_docker and isinstance(facts.engine, Engine) and facts.engine.memory:
        size = min(size, facts.engine.memory)
    found = f"{size / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB of them free"
    plan = facts.plan
    if plan is None or plan.total is None:
        return Finding("host memory", "ok", found)
    wanted = plan.host_memory * facts.nodes_here
    needed = f"{wanted / GIB:.1f} GiB, by the plan"
    # The plan counts processes with CUDA in them, and pages that are only read may be dropped.
    level: Level = "ok" if wanted <= memory.available else "warning"
    if wanted > 2 * size:
        level = "error"
    fix = "close other programs, add memory, or set train.workers=0" if level != "ok" else ""
    return Finding("host memory", level, found, needed=needed, fix=fix)


def _ports(facts: Facts) -> Finding | None:
    """The rendezvous of node 0 and the port after it, where they are this machine's own."""
    if facts.profile is None:
        return None
    if facts.in_docker and not any(service.on_host_network for service in facts.services):
        return Finding("ports", "skipped", "the nodes meet on a network of their own")
    if facts.env.get("NODE_RANK", "0") != "0":
        return Finding("ports", "skipped", "node 0 listens, this one does not")
    if facts.config is None:
        return Finding("ports", "skipped", facts.settings.missing or "the profile has a mistake")
    given = facts.env.get("MASTER_PORT") or facts.env.get("NODE_RANK")
    if facts.config.parallel.nodes == 1 or not given:
        return Finding("ports", "ok", "any two that are free when the run starts")
    first = facts.config.parallel.master_port
    busy = [port for port in (first, first + 1) if not is_free(port)]
    needed = f"{first} and {first + 1} free"
    if not busy:
        return Finding("ports", "ok", "both free", needed=needed)
    shown = f"{' and '.join(map(str, busy))} taken"
    return Finding(
        "ports", "error", shown, needed=needed, fix=f"MASTER_PORT={_free_pair(first)} on all nodes"
    )


def _free_pair(after: int) -> int:
    ports = range(after + 2, min(after + 200, 65534))
    return next((port for port in ports if is_free(port) and is_free(port + 1)), after + 2)


def _caller(facts: Facts) -> tuple[int, int]:
    """User and group of the caller, also behind sudo."""
    uid, gid = facts.env.get("SUDO_UID", ""), facts.env.get("SUDO_GID", "")
    return int(uid or os.getuid()), int(gid or os.getgid())


def _folders(facts: Facts) -> Finding:
    """Whether a run's folders belong to the caller, and not to root through an engine."""
    uid, gid = _caller(facts)
    folders = [facts.outputs, facts.cache]
    if facts.profile:
        folders.append(facts.outputs / Path(facts.profile).stem)
    bad = [place for place in map(existing, folders) if not may_write(place, uid, gid)]
    if not bad:
        return Finding("folders", "ok", f"{facts.outputs} and {facts.cache} are yours to write")
    places = list(dict.fromkeys(bad))
    shown = ", ".join(f"{place} (of uid {place.stat().st_uid})" for place in places)
    fix = how_to_write(places, uid, gid)
    return Finding(
        "folders", "error", f"not writable by uid {uid}: {shown}", needed="yours to write", fix=fix
    )


def _user(facts: Facts) -> Finding | None:
    """Whether containers run as the caller: they take UID and GID from .env."""
    users = {service.user for service in facts.services if service.user}
    if not users:
        return None
    own = ":".join(map(str, _caller(facts)))
    if users == {own}:
        return Finding("user of containers", "ok", own, needed=own)
    shown = f"{', '.join(sorted(users))} where `docker compose` is called by hand"
    fix = "scripts/setup_environment.sh    (writes UID and GID into .env)"
    return Finding("user of containers", "warning", shown, needed=own, fix=fix)


def _dotenv(path: Path = Path(".env")) -> Finding:
    if not path.is_file():
        return Finding(".env", "ok", "none: every variable has a default")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        shown = f"mode {mode:o}: others on this machine can read your tokens"
        return Finding(".env", "warning", shown, needed="mode 600", fix=f"chmod 600 {path}")
    return Finding(".env", "ok", f"mode {mode:o}", needed="yours alone to read")


def _year() -> Finding:
    year = time.gmtime().tm_year
    if year < _FIRST_YEAR:
        fix = "sudo timedatectl set-ntp true"
        return Finding(
            "clock", "warning", f"the year {year}", needed=f"{_FIRST_YEAR} or later", fix=fix
        )
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
