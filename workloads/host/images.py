"""Images of this checkout on the engine."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.host.programs import has, run_program

CHECKOUT = "tatara.checkout"  # a label that compose.yaml gives each image


def unused(root: Path, env: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Name, or id where it has none, and size in bytes of images that no container uses."""
    if not has("docker", env):
        return
    words = ["docker", "images", "--no-trunc", "--quiet", "--filter", f"label={CHECKOUT}={root}"]
    ids = dict.fromkeys(run_program(words, env).out.split())
    containers = run_program(["docker", "ps", "--all", "--quiet", "--no-trunc"], env).out.split()
    used = _inspected("container", containers, env)
    in_use = {container["Image"] for container in used}
    for image in _inspected("image", list(ids), env):
        if image["Id"] not in in_use:
            yield (image.get("RepoTags") or [image["Id"]])[0], int(image["Size"])


def _inspected(kind: str, names: list[str], env: Mapping[str, str]) -> list[dict[str, Any]]:
    if not names:
        return []
    answer = run_program(["docker", kind, "inspect", *names], env, seconds=60)
    found: list[dict[str, Any]] = json.loads(answer.out or "[]")
    return found


def remove_image(name: str, env: Mapping[str, str]) -> None:
    """Remove one; UserError where a container has come to use it."""
    answer = run_program(["docker", "image", "rm", name], env, seconds=120)
    if not answer.is_good:
        raise UserError(f"{name}: cannot be removed: {answer.problem}")
