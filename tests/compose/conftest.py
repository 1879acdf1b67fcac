"""Containers for the tests of this folder: built once, one project a test."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.compose.project import ROOT, Project, base_image

BUILD_SECONDS = 1800.0


def _missing() -> str:
    """Why no container can be started here, or nothing."""
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    for words in (["docker", "version"], ["docker", "compose", "version"]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        if done.returncode:
            return f"`{' '.join(words)}` says: {done.stderr.strip().splitlines()[-1]}"
    return ""


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where no engine answers, and says why."""
    if missing := _missing():
        pytest.skip(f"NOT TESTED, the containers: {missing}; start a Docker engine")


@pytest.fixture(scope="session")
def images(engine: None) -> Callable[[str], None]:
    """Builds a target's image from this checkout, once a session."""
    built: set[str] = set()

    def build(target: str) -> None:
        if target in built:
            return
        words = ["docker", "build", "-q", "-f", "images/Dockerfile", "--target", target]
        words += ["-t", f"tatara/{target}:local"]
        if base := base_image():
            words += ["--build-arg", f"BASE_IMAGE={base}"]
        done = subprocess.run(
            [*words, "."], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        built.add(target)

    return build


@pytest.fixture
def project(
    request: pytest.FixtureRequest, tmp_path: Path, images: Callable[[str], None]
) -> Iterator[Callable[..., Project]]:
    """Makes compose projects; whatever they started is removed at the end of the test."""
    made: list[Project] = []
    # Folders that pytest makes are for its own user alone; the containers run as another one.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)

    def make(target: str = "demo", files: tuple[str, ...] = (), **settings: str) -> Project:
        images(target)
        word = re.sub(r"[^a-z0-9]", "", request.node.name.lower())[:20]
        name = f"tatara-test-{word}-{uuid4().hex[:6]}"
        made.append(Project(name, tmp_path / f"{len(made)}", files, **settings))
        return made[-1]

    yield make
    for item in made:
        item.down()
