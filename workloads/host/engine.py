"""The Docker engine: its kind and version, and actions on it."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workloads.errors import UserError
from workloads.host.programs import ProgramResult, has, run_program

Runtime = Literal["docker", "local"]
# The same sentence in doctor, scripts and docs/containers.md.
UNSUPPORTED = "needs a Docker Engine of the system, not rootless, without userns-remap, not Podman"
# Inside a container: does the GPU answer, and which torch is it.
_TRIAL = (
    "nvidia-smi -L && python -c 'import importlib.util as u, pathlib as p; "
    'print(p.Path(u.find_spec("torch").origin).with_name("version.py").read_text())\''
)


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers; memory in bytes."""

    version: str
    compose: str
    runtimes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    cgroup_driver: str = ""
    cgroup_version: str = ""
    security: tuple[str, ...] = ()
    memory: int = 0
    root: str = ""

    @property
    def unsupported(self) -> str:
        """Why no run can use this engine; empty if one can."""
        if self.maps_users:
            return f"the engine is rootless or remaps users, and a run {UNSUPPORTED}"
        return ""

    @property
    def maps_users(self) -> bool:
        """Whether a uid inside a container differs from that outside."""
        return any(word in option for option in self.security for word in ("rootless", "userns"))


def engine(env: Mapping[str, str]) -> Engine | str:
    """The engine, or why none answers."""
    if not has("docker", env):
        return "docker is not on PATH"
    answer = run_program(["docker", "info", "--format", "{{json .}}"], env)
    facts = parse_object(answer.out)
    if "host" in facts and "ServerVersion" not in facts:
        version = (facts.get("version") or {}).get("Version", "of an unknown version")
        return f"Podman {version} answers in its place, and a run {UNSUPPORTED}"
    if not facts.get("ServerVersion"):
        reasons = facts.get("ServerErrors") or [answer.problem or "no answer"]
        return str(reasons[0]).strip().splitlines()[-1]
    # Podman's socket answers like an engine; its list of components names it.
    version = run_program(["docker", "version", "--format", "{{json .Server}}"], env).out
    if "Podman Engine" in version:
        return f"Podman {facts['ServerVersion']} answers in its place, and a run {UNSUPPORTED}"
    compose = run_program(["docker", "compose", "version", "--short"], env)
    return Engine(
        version=facts["ServerVersion"],
        compose=compose.out.strip() if compose.is_good else "",
        runtimes=tuple(facts.get("Runtimes") or ()),
        devices=tuple(str(device.get("ID")) for device in facts.get("DiscoveredDevices") or ()),
        cgroup_driver=facts.get("CgroupDriver") or "",
        cgroup_version=str(facts.get("CgroupVersion") or ""),
        security=tuple(facts.get("SecurityOptions") or ()),
        memory=int(facts.get("MemTotal") or 0),
        root=facts.get("DockerRootDir") or "",
    )


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that a program printed; empty where it printed none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_there(image: str, env: Mapping[str, str]) -> bool:
    """Whether an image has been built here."""
    return run_program(["docker", "image", "inspect", "--format", "{{.Id}}", image], env).is_good


def try_gpus(image: str, env: Mapping[str, str]) -> ProgramResult:
    """Start a container with every GPU, for at most 60 s, and return the GPUs and torch it sees."""
    name = f"tatara-doctor-{os.getpid()}"
    words = ["docker", "run", "--rm", "--name", name, "--pull", "never", "--network", "none"]
    words += ["--gpus", "all", "--entrypoint", "sh", image, "-c", _TRIAL]
    answer = run_program(words, env, 60)
    if answer.code is None:
        run_program(["docker", "rm", "--force", name], env)
    return answer


def has_device_links(devices: Path = Path("/dev/char")) -> bool:
    """Whether /dev/char leads to NVIDIA's devices, whose major number is 195."""
    return any(devices.glob("195:*"))


def toolkit_version(env: Mapping[str, str]) -> str:
    """The NVIDIA Container Toolkit's version; empty where its command is not there."""
    found = re.search(r"version\s+(\d\S*)", run_program(["nvidia-ctk", "--version"], env).out)
    return found[1] if found else ""


def choose_runtime(env: Mapping[str, str], engine: Engine | str) -> tuple[Runtime, str]:
    """`docker` or `local`, and why; for scripts and doctor.

    engine: the one found, or why there is none. Raises UserError for another TATARA_RUNTIME.
    """
    forced = env.get("TATARA_RUNTIME", "")
    if forced not in ("", "docker", "local"):
        raise UserError(
            f"expected TATARA_RUNTIME=docker or local, found {forced!r}; set one of them, "
            "or nothing"
        )
    if forced:
        return ("docker" if forced == "docker" else "local"), "TATARA_RUNTIME says so"
    if isinstance(engine, str):
        return "local", f"no Docker engine to use: {engine}"
    if engine.unsupported:
        return "local", engine.unsupported
    if not engine.compose:
        return "local", "the Docker engine has no Compose"
    return "docker", "a Docker engine answers"


def gets_images(base: str, env: Mapping[str, str]) -> bool:
    """Whether the engine has one of our images, or its base image, or can download that."""
    ours = run_program(["docker", "images", "--quiet", "tatara/*"], env)
    if ours.out.strip() or is_there(base, env):
        return True
    return run_program(["docker", "pull", "--quiet", base], env, seconds=120).is_good
