"""What the Docker engine is, and what compose.yaml would start on it."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.doctor.answer import Answer, ask, has
from workloads.doctor.nvidia import Build, build_in

_MULTIHOST = "compose.multihost.yaml"
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

    @property
    def maps_users(self) -> bool:
        """Whether a uid inside a container is another one outside."""
        return any(word in option for option in self.security for word in ("rootless", "userns"))


@dataclass(frozen=True)
class Service:
    """A service that a profile would start here."""

    name: str
    image: str
    words: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # may hold a token
    reserves_gpu: bool = False
    shared_memory: int | None = None
    on_host_network: bool = False
    user: str = ""

    @property
    def trains(self) -> bool:
        return bool(self.words) and self.words[0] == "train"


def engine(env: Mapping[str, str]) -> Engine | str:
    """The engine, or why there is none to speak with."""
    if not has("docker", env):
        return "docker is not on PATH"
    answer = ask(["docker", "info", "--format", "{{json .}}"], env)
    facts = _json(answer.out)
    if not facts.get("ServerVersion"):
        reasons = facts.get("ServerErrors") or [answer.problem or "no answer"]
        return str(reasons[0]).strip().splitlines()[-1]
    compose = ask(["docker", "compose", "version", "--short"], env)
    return Engine(
        version=facts["ServerVersion"],
        compose=compose.out.strip() if compose.is_good else "",
        runtimes=tuple(facts.get("Runtimes") or ()),
        devices=tuple(str(one.get("ID")) for one in facts.get("DiscoveredDevices") or ()),
        cgroup_driver=facts.get("CgroupDriver") or "",
        cgroup_version=str(facts.get("CgroupVersion") or ""),
        security=tuple(facts.get("SecurityOptions") or ()),
        memory=int(facts.get("MemTotal") or 0),
    )


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def services(profile: str, env: Mapping[str, str]) -> tuple[Service, ...] | str:
    """What `start_training.sh PROFILE` would start on this host, or Compose's complaint.

    NODE_RANK: this host is one of several and starts one service. NNODES=1: node 0 alone.
    """
    env = dict(env)
    if env.get("NODE_RANK"):
        files = env.get("COMPOSE_FILE") or "compose.yaml"
        env["COMPOSE_FILE"] = files if _MULTIHOST in files else f"{files}{os.pathsep}{_MULTIHOST}"
    words = ["docker", "compose", "--profile", profile, "config", "--format", "json"]
    answer = ask(words, env, seconds=30)
    if not answer.is_good:
        return answer.problem
    told = _json(answer.out).get("services") or {}
    found = tuple(_service(name, facts) for name, facts in told.items())
    if env.get("NODE_RANK"):
        mine = [one for one in found if one.env.get("NODE_RANK") == env["NODE_RANK"]]
        return tuple(mine[:1]) or found
    if env.get("NNODES") == "1":
        return tuple(one for one in found if one.env.get("NODE_RANK") in (None, "", "0"))
    return found


def _service(name: str, facts: Mapping[str, Any]) -> Service:
    reserved = _inner(facts, "deploy", "resources", "reservations").get("devices") or ()
    command = facts.get("command") or ()
    settings = facts.get("environment") or {}
    return Service(
        name=name,
        image=facts.get("image") or "",
        words=tuple(shlex.split(command) if isinstance(command, str) else command),
        env={key: str(value) for key, value in settings.items() if value is not None},
        reserves_gpu=any("gpu" in (one.get("capabilities") or ()) for one in reserved),
        shared_memory=int(facts["shm_size"]) if facts.get("shm_size") else None,
        on_host_network=facts.get("network_mode") == "host",
        user=str(facts.get("user") or ""),
    )


def _inner(facts: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for part in path:
        facts = facts.get(part) or {}
    return facts


def is_there(image: str, env: Mapping[str, str]) -> bool:
    """Whether an image has been built here."""
    return ask(["docker", "image", "inspect", "--format", "{{.Id}}", image], env).is_good


def hand_over(image: str, env: Mapping[str, str]) -> tuple[Answer, Build | None]:
    """Start a container that asks for every GPU, at most 60 s; the answer, and the torch in it."""
    name = f"tatara-doctor-{os.getpid()}"
    words = ["docker", "run", "--rm", "--name", name, "--pull", "never", "--network", "none"]
    answer = ask([*words, "--gpus", "all", "--entrypoint", "sh", image, "-c", _TRIAL], env, 60)
    if answer.code is None:
        ask(["docker", "rm", "--force", name], env)
    return answer, build_in(answer.out, f"the torch in {image}")


def has_device_links(devices: Path = Path("/dev/char")) -> bool:
    """Whether /dev/char leads to NVIDIA's devices, whose major number is 195."""
    return any(devices.glob("195:*"))


def toolkit_version(env: Mapping[str, str]) -> str:
    """The NVIDIA Container Toolkit's version; empty where its command is not there."""
    found = re.search(r"version\s+(\d\S*)", ask(["nvidia-ctk", "--version"], env).out)
    return found[1] if found else ""
