"""Where simulators run: an own Python, an image, an address, or this checkout's image."""

import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from workloads.cli import main
from workloads.errors import UserError
from workloads.host import checkout
from workloads.vla.calvin import places, simulator
from workloads.vla.calvin.places import add_simulator, downloaded, place_of

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
DOCKER = """#!/bin/sh
echo "$@" >>"$DOCKER_LOG"
case "$1" in info) echo '{"ServerVersion": "28.0.0"}' ;; esac
case "$*" in
*" build "*) [ -z "$DOCKER_FAILS" ] || { echo "error: $DOCKER_FAILS" >&2; exit 1; } ;;
esac
"""


def given(*words: object) -> Namespace:
    parser = ArgumentParser()
    add_simulator(parser)
    return parser.parse_args([str(word) for word in words])


def clone(folder: Path) -> Path:
    """What looks like a clone of calvin_env."""
    (folder / "conf").mkdir(parents=True)
    (folder / "conf/config_data_collection.yaml").touch()
    return folder


def git(folder: Path, *words: str) -> str:
    author = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")
    command = ["git", "-C", str(folder), *author, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a stand-in for docker; what that was asked for."""
    log = tmp_path / "docker.log"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_LOG", str(log))
    for name in ("TATARA_CALVIN", "TATARA_CACHE", "SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("compose.yaml", ".env.example"):
        shutil.copy(ROOT / name, folder)
    monkeypatch.chdir(folder)
    return log


def test_the_checkouts_image_is_built_and_gets_the_clone_read_only(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path.cwd()
    checkout.set_up(folder, os.environ)
    there = clone(folder / ".cache/calvin_env")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    place = place_of(given("--egl"), {**os.environ, "TATARA_TAG": "ann-1"})
    assert place.command[:5] == ("docker", "run", "--rm", "--init", "-i")
    assert place.command[-2:] == ("tatara/calvin:ann-1", "--egl")
    text = " ".join(place.command)
    for part in (
        "--network none",
        "--cap-drop ALL",
        "--user 1234:",
        f"-v {there}:/opt/calvin_env:ro",
    ):
        assert part in text
    assert "--profile calvin build calvin" in engine.read_text()
    monkeypatch.setenv("DOCKER_FAILS", "no space left")
    with pytest.raises(
        UserError, match="image of CALVIN's simulator to be built, found: error: no"
    ):
        place_of(given(), os.environ)


def test_root_never_is_the_containers_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    own = clone(tmp_path / "calvin/calvin_env")
    place = place_of(given("--env-image", "mine:1", "--calvin", own.parent), {})
    assert "--user" not in place.command and place.command[-1] == "mine:1"
    # The folder of CALVIN's whole repository stands for the clone in it.
    assert f"{own}:/opt/calvin_env:ro" in place.command


def test_the_clone_is_downloaded_once_at_the_pinned_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = clone(tmp_path / "origin")
    git(origin, "init", "--quiet")
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "one")
    commit = git(origin, "rev-parse", "HEAD")
    monkeypatch.setattr(places, "URL", str(origin))
    monkeypatch.setattr(places, "COMMIT", commit)
    env = {**os.environ, "TATARA_CACHE": str(tmp_path / "cache"), "TATARA_CALVIN": ""}
    (tmp_path / "cache").mkdir()
    found = downloaded(env)
    assert found == tmp_path / "cache/calvin_env" and simulator.commit_of(found) == commit
    monkeypatch.setattr(places, "URL", str(tmp_path / "nowhere"))
    assert downloaded(env) == found  # no download
    other = {**env, "TATARA_CALVIN": str(tmp_path / "other")}
    with pytest.raises(
        UserError, match=r"expected calvin_env in .*other, found none, and its down"
    ):
        downloaded(other)
    assert not list(tmp_path.glob("other*"))


def test_what_says_nowhere_where_a_simulator_runs(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, match in (
        (("--env", "nowhere"), "--env: expected HOST:PORT"),
        (("--env", "a:1", "--egl"), "neither --calvin nor --egl beside --env"),
        (("--processes", "0"), "--processes: expected at least 1, found 0"),
        (("--env-image", "x", "--calvin", tmp_path), "expected a clone of calvin_env, found none"),
        (("--env-python", tmp_path / "python"), "--env-python: expected a Python, found none"),
        ((), "this checkout has not been set up"),
    ):
        if not words:
            clone(Path.cwd() / ".cache/calvin_env")
        with pytest.raises(UserError, match=match):
            place_of(given(*words), os.environ)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="found: no compose.yaml in this folder; give --env-python"):
        place_of(given(), os.environ)
    with pytest.raises(UserError, match="found: docker is not on PATH"):
        place_of(given(), {"PATH": str(tmp_path)})


def test_options_of_another_task_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "data")
    for words, said in (
        (["reach", target, "--env-python", sys.executable], "--env-python: expected with calvin"),
        (["recall", target, "--count", "3"], "--count: expected with questions alone"),
        (["questions", target, "--episodes", "3"], "--episodes: questions have none"),
    ):
        assert main(["data", "generate", *words]) == 2
        assert said in capsys.readouterr().err
