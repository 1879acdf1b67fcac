"""Checks of the Docker engine: its version, GPUs in containers, owner of written files."""

from pathlib import Path

from workloads.doctor.facts import SETUP, Facts
from workloads.findings import Finding
from workloads.host import engine as docker
from workloads.host.engine import Engine
from workloads.host.programs import has
from workloads.host.requirements import requirements

_REGISTER = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
_TOOLKIT = (
    "install nvidia-container-toolkit from NVIDIA's repository (https://docs.nvidia.com/datacenter/"
    f"cloud-native/container-toolkit/latest/install-guide.html), then {_REGISTER}"
)
_LINKS = "sudo nvidia-ctk system create-dev-char-symlinks --create-all"
_CGROUPFS = '"exec-opts": ["native.cgroupdriver=cgroupfs"] in /etc/docker/daemon.json'


def checks(facts: Facts) -> list[Finding]:
    """All checks of Docker; one line where no run would use it."""
    engine = facts.engine
    if isinstance(engine, str) and not facts.in_docker and not has("docker", facts.env):
        return [Finding("Docker Engine", "skipped", f"{engine}; runs use .venv")]
    found = requirements(engine, "error" if facts.in_docker else "warning")
    if isinstance(engine, str):
        return found
    if facts.complaint:
        needed = "a file that Compose reads"
        found.append(Finding("compose.yaml", "error", facts.complaint, needed=needed))
    if facts.in_docker:
        found += _gpu(facts, engine)
    return found


def _gpu(facts: Facts, engine: Engine) -> list[Finding]:
    """Whether containers get a GPU, and keep it."""
    if facts.ignores_gpu:
        return []
    if not facts.smi.cards and not facts.needs_gpu:
        return [Finding("GPU in containers", "skipped", "there is no GPU to hand over")]
    found = [_toolkit(facts, engine), _handed(facts)]
    if facts.smi.cards:
        found.append(cgroups(engine))
    return [item for item in found if item is not None]


def _toolkit(facts: Facts, engine: Engine) -> Finding:
    """The NVIDIA Container Toolkit, by its command and by what the engine lists.

    `--gpus` needs its hook beside the engine; the runtime in the engine's list comes with it.
    """
    version = docker.toolkit_version(facts.env)
    hook = has("nvidia-container-runtime-hook", facts.env)
    listed = any("nvidia" in name for name in (*engine.runtimes, *engine.devices))
    needed = "NVIDIA Container Toolkit, known to the engine"
    handed = facts.handed is not None and facts.handed.is_good
    if handed or listed or hook:
        how = "registered with the engine" if listed else "found by the engine"
        return Finding(
            "container toolkit", "ok", f"{version or 'a version unknown'}, {how}", needed=needed
        )
    runtimes = ", ".join(name for name in engine.runtimes if "." not in name)
    text = f"{version or 'none'}; the engine's runtimes are: {runtimes}"
    fix = _REGISTER if version else _TOOLKIT
    return Finding("container toolkit", "error", text, needed=needed, fix=fix)


def _handed(facts: Facts) -> Finding | None:
    """Start a container with all GPUs, if one of our images is there."""
    answer = facts.handed
    if answer is None:
        why = f"not tried: no image of ours yet (`{SETUP}` builds one)"
        return Finding("GPU in containers", "skipped", why)
    needed = "a container that sees the GPUs"
    seen = [line for line in answer.out.splitlines() if line.startswith("GPU ")]
    if answer.is_good:
        here = len(facts.smi.cards)
        return Finding("GPU in containers", "ok", f"{len(seen)} of {here} GPUs seen", needed=needed)
    text = answer.problem
    if "Unknown Error" in answer.out + text:
        text += " (the engine's cgroups hide the devices)"
    fix = "sudo systemctl restart docker" if "Unknown Error" in text else _TOOLKIT
    return Finding("GPU in containers", "error", text, needed=needed, fix=fix)


def cgroups(engine: Engine, devices: Path = Path("/dev/char")) -> Finding:
    """Warn where `systemctl daemon-reload` takes GPUs from containers (cgroups under systemd).

    They then say "Failed to initialize NVML: Unknown Error". Links in /dev/char, or the other
    driver of cgroups, keep them (NVIDIA/nvidia-docker issue 1730).
    """
    found = f"cgroup driver {engine.cgroup_driver or 'unknown'}, v{engine.cgroup_version or '?'}"
    needed = "GPUs that stay after `systemctl daemon-reload`"
    if engine.cgroup_driver != "systemd":
        return Finding("cgroups", "ok", found, needed=needed)
    if docker.has_device_links(devices):
        return Finding("cgroups", "ok", f"{found}, devices linked in /dev/char", needed=needed)
    text = f"{found}, no links in /dev/char: a daemon-reload ends a training with 'Unknown Error'"
    return Finding(
        "cgroups", "warning", text, needed=needed, fix=f"{_LINKS} (at each boot); or {_CGROUPFS}"
    )
