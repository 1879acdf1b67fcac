"""Services of compose.yaml: those that train a profile, and their containers on this engine."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.host.engine import parse_object
from workloads.host.programs import run_program

# A service's label in compose.yaml: names or patterns of the profiles that it trains.
PROFILES = "tatara.profiles"
_COMPOSE = "com.docker.compose"
_MULTIHOST = "compose.multihost.yaml"


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
    profiles: str = ""
    sources: tuple[str, ...] = ()  # folders of this host that are mounted

    @property
    def trains(self) -> bool:
        return bool(self.words) and self.words[0] == "train"


@dataclass(frozen=True)
class Container:
    """A container that trains: its id, its service, and the profiles that this one trains."""

    id: str
    service: str
    profiles: str


def is_for(profile: str, patterns: str) -> bool:
    """Whether a profile is among those that a label names."""
    return any(fnmatchcase(profile, pattern) for pattern in patterns.split())


def services(profile: str, env: Mapping[str, str]) -> tuple[Service, ...] | str:
    """Services that `start_training.sh PROFILE` would start on this host, or Compose's error.

    Node 0, whose exit code is the job's, comes first. NODE_RANK: this host is one of several and
    starts one service. NNODES=1: node 0 alone.
    """
    env = dict(env)
    if env.get("NODE_RANK"):
        env["COMPOSE_FILE"] = multihost_files(env)
    words = ["docker", "compose", "--profile", "*", "config", "--format", "json"]
    answer = run_program(words, env, seconds=30)
    if not answer.is_good:
        return answer.problem
    listed = parse_object(answer.out).get("services") or {}
    every = [_service(name, facts) for name, facts in listed.items()]
    found = tuple(
        sorted(
            (service for service in every if is_for(profile, service.profiles)),
            key=lambda service: (not service.trains, service.env.get("NODE_RANK", "")),
        )
    )
    if env.get("NODE_RANK"):
        # With more hosts than services, all but the first run the second one.
        return found[1:2] if env["NODE_RANK"] != "0" and len(found) > 1 else found[:1]
    if env.get("NNODES") == "1":
        return tuple(item for item in found if item.env.get("NODE_RANK") in (None, "", "0"))
    return found


def multihost_files(env: Mapping[str, str]) -> str:
    """COMPOSE_FILE for one of several hosts."""
    files = env.get("COMPOSE_FILE") or "compose.yaml"
    return files if _MULTIHOST in files else f"{files}{os.pathsep}{_MULTIHOST}"


def _service(name: str, facts: Mapping[str, Any]) -> Service:
    reserved = _inner(facts, "deploy", "resources", "reservations").get("devices") or ()
    command = facts.get("command") or ()
    settings = facts.get("environment") or {}
    volumes = facts.get("volumes") or ()
    return Service(
        name=name,
        image=facts.get("image") or "",
        words=tuple(shlex.split(command) if isinstance(command, str) else command),
        env={key: str(value) for key, value in settings.items() if value is not None},
        reserves_gpu=any("gpu" in (item.get("capabilities") or ()) for item in reserved),
        shared_memory=int(facts["shm_size"]) if facts.get("shm_size") else None,
        on_host_network=facts.get("network_mode") == "host",
        user=str(facts.get("user") or ""),
        profiles=str((facts.get("labels") or {}).get(PROFILES, "")),
        sources=tuple(volume.get("source", "") for volume in volumes if isinstance(volume, dict)),
    )


def _inner(facts: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for part in path:
        facts = facts.get(part) or {}
    return facts


def training(profile: str, env: Mapping[str, str]) -> tuple[Service, ...]:
    """As `services`; raises UserError where none trains that profile, or Compose fails."""
    found = services(profile, env)
    if isinstance(found, str):
        raise UserError(f"expected compose.yaml to be readable, found: {found}; fix what it names")
    if not found:
        raise UserError(
            "expected a profile with services of its own (demo, llm-4090, vla, grpo-h100 and the "
            f"recipes vla-… and grpo-…), found {profile!r}; name the one whose services are to "
            f"train it: scripts/start_training.sh {profile} --like llm-4090"
        )
    return found


def running(root: Path, profile: str, env: Mapping[str, str]) -> list[Container]:
    """Containers of this checkout that train now, of every profile where none is named.

    Other checkouts on the same engine are distinguished by the folder in each container's labels,
    not by the project's name, which may come from a copied `.env`. Raises UserError where
    the engine does not list them.
    """
    fields = ("{{.ID}}", _label("service"), f'{{{{.Label "{PROFILES}"}}}}', _label("working_dir"))
    words = ["docker", "ps", "--no-trunc", "--format", "\t".join(fields)]
    words += ["--filter", f"label={PROFILES}", "--filter", f"label={_COMPOSE}.oneoff=False"]
    answer = run_program(words, env)
    if not answer.is_good:
        raise UserError(f"expected the engine's containers, found: {answer.problem}")
    rows = [line.split("\t") for line in answer.out.splitlines()]
    return [
        Container(row[0], row[1], row[2])
        for row in rows
        if Path(row[3]).resolve() == root and (not profile or is_for(profile, row[2]))
    ]


def _label(name: str) -> str:
    part = "project." if name == "working_dir" else ""
    return f'{{{{.Label "{_COMPOSE}.{part}{name}"}}}}'
