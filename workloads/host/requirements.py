"""Requirements of a run on the Docker engine, as findings for scripts and doctor."""

import re

from workloads.findings import Finding, Level
from workloads.host.engine import UNSUPPORTED, Engine

OLDEST_ENGINE, OLDEST_COMPOSE = (20, 10), (2, 24)
_INSTALL = "https://docs.docker.com/engine/install/"
_FROM_DOCKER = f"install docker-ce and docker-compose-plugin from Docker's repository: {_INSTALL}"


def requirements(engine: Engine | str, level: Level = "error") -> list[Finding]:
    """Findings on engine, Compose and uids in containers; `level`: that of a missing one."""
    if isinstance(engine, str):
        needed = "a Docker engine that answers"
        return [Finding("Docker Engine", level, engine, _reach(engine), needed)]
    return [
        _version("Docker Engine", engine.version, OLDEST_ENGINE, level),
        # 2.24 knows `env_file: required: false` and `!reset`.
        _version("Docker Compose", engine.compose or "none", OLDEST_COMPOSE, level),
        _uids(engine, level),
    ]


def _reach(why: str) -> str:
    """How to get an engine that answers."""
    if "permission denied" in why.lower():
        return "sudo usermod -aG docker $USER, then log in again"
    if "not on PATH" in why or UNSUPPORTED in why:
        return f"{_FROM_DOCKER}; or set TATARA_RUNTIME=local"
    return "sudo systemctl start docker"


def _version(name: str, found: str, oldest: tuple[int, int], level: Level) -> Finding:
    needed = f"{oldest[0]}.{oldest[1]} or newer"
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers >= oldest:
        return Finding(name, "ok", found, needed=needed)
    return Finding(name, level, found, _FROM_DOCKER, needed)


def _uids(engine: Engine, level: Level) -> Finding:
    """Whether uids in containers are the host's, so that files belong to the caller."""
    if engine.unsupported:
        fix = "docker context use default, for an engine of the system; or set TATARA_RUNTIME=local"
        return Finding("uids in containers", level, engine.unsupported, fix, "the host's own uids")
    return Finding("uids in containers", "ok", "the host's own")
