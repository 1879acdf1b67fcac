"""O-A1, O-A10, O-A11: a checkout's project, and what Compose is told of the caller's shell."""

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from workloads.env_file import read
from workloads.errors import UserError
from workloads.host.checkout import (
    NOT_SET_UP,
    belongs,
    compose_environment,
    mark,
    project,
    set_up,
    shell_settings,
)
from workloads.host.command import main

pytestmark = pytest.mark.unit
ENV = {"PATH": os.environ["PATH"]}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / ".env.example").write_text("# SEED=1\n# HF_TOKEN=\n# HTTPS_PROXY=\n# HF_ENDPOINT=x\n")
    return folder


def test_projects_differ_by_folder_and_user_and_stay(tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "tatara", tmp_path / "b" / "tatara"
    users = ({"SUDO_UID": "7", "SUDO_USER": "Ann B"}, {"SUDO_UID": "8", "SUDO_USER": "bob"})
    names = [
        project(place, user)["COMPOSE_PROJECT_NAME"] for place in (here, there) for user in users
    ]
    assert len(set(names)) == 4 and names[0].startswith("tatara-annb-")
    assert project(here, users[0]) == project(here, users[0])
    assert project(here, users[0])["TATARA_TAG"] == names[0].removeprefix("tatara-")


def test_set_up_writes_it_once_and_keeps_what_is_yours(tmp_path: Path) -> None:
    here = made(tmp_path / "one")
    assert belongs(here) == NOT_SET_UP
    set_up(here, {**ENV, "TATARA_OUTPUTS": "/data/my runs"})
    first = read(here / ".env")
    assert belongs(here) == "" and first["TATARA_OUTPUTS"] == "/data/my runs"
    assert first["TATARA_CHECKOUT"] == str(here)
    assert (here / ".env").stat().st_mode & 0o777 == 0o600
    with (here / ".env").open("a") as file:
        file.write("TATARA_TAG=mine\nSEED=7\n")
    set_up(here, ENV)
    assert read(here / ".env") == {**first, "TATARA_TAG": "mine", "SEED": "7"}
    os.remove(mark(here))
    assert belongs(here) == NOT_SET_UP


def test_a_copied_dotenv_is_made_this_checkouts_own(tmp_path: Path) -> None:
    here, there = made(tmp_path / "one"), made(tmp_path / "two")
    set_up(here, ENV)
    (there / ".env").write_text((here / ".env").read_text() + "SEED=7\n")
    assert belongs(there) == f".env is that of {here}, copied here"
    # The file that compose.yaml asks for is not there.
    assert not mark(there, here).exists()
    set_up(there, ENV)
    assert belongs(there) == "" and read(there / ".env")["SEED"] == "7"
    assert read(there / ".env")["TATARA_TAG"] != read(here / ".env")["TATARA_TAG"]


def test_scripts_start_nothing_in_a_copy_of_a_whole_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compose by hand cannot know: the copy has the file that the secret `checkout` names, too."""
    set_up(made(tmp_path / "first"), ENV)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    monkeypatch.chdir(tmp_path / "second")
    monkeypatch.setattr(os, "execvpe", Mock(side_effect=AssertionError("Compose was called")))
    for words in (["compose", "--profile", "demo", "up"], ["down"], ["is-set-up"]):
        assert main(words) == 2
        assert "first, copied here; run scripts/setup_environment.sh" in capsys.readouterr().err


def test_what_a_shell_sets_is_handed_over_as_a_file_of_the_caller(tmp_path: Path) -> None:
    here = made(tmp_path / "one")
    set_up(here, ENV)
    with (here / ".env").open("a") as file:
        file.write("OPENAI_API_KEY=old\n")
    env = {
        **ENV,
        "SEED": "it's 3",
        "HF_TOKEN": "canary",
        "OPENAI_API_KEY": "canary",
        "https_proxy": "http://u:canary@p:1",
        "TATARA__OPTIM__SEED": "1",
        "EDITOR": "vi",
        "AWS_SECRET_ACCESS_KEY": "not asked for",
    }
    wanted = {name: env[name] for name in env if name not in ("PATH", "EDITOR")}
    del wanted["AWS_SECRET_ACCESS_KEY"]
    assert shell_settings(here, env) == wanted
    told = compose_environment(here, env)
    assert read(here / told["TATARA_SHELL_ENV"]) == wanted
    assert (here / told["TATARA_SHELL_ENV"]).stat().st_mode & 0o777 == 0o600


def test_upper_and_lower_case_names_of_a_proxy_are_both_told(tmp_path: Path) -> None:
    """O-A11: apt reads the lower-case ones alone."""
    here = made(tmp_path / "one")
    set_up(here, {**ENV, "HTTP_PROXY": "http://a:1", "NO_PROXY": "x", "no_proxy": "y"})
    lines = mark(here).read_text().splitlines()
    told = {"HTTP_PROXY=http://a:1", "http_proxy=http://a:1", "NO_PROXY=x", "no_proxy=y"}
    assert {f"export {setting}" for setting in told} <= set(lines)


def test_a_build_learns_proxies_and_authorities(tmp_path: Path) -> None:
    here = made(tmp_path / "one")
    set_up(here, ENV)
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    env = {**ENV, "HTTPS_PROXY": "http://it's:p@h:1", "SSL_CERT_FILE": str(bundle)}
    told = compose_environment(here, env)
    assert told["TATARA_CA_FILE"] == str(bundle)
    text = mark(here).read_text()
    for name in ("HTTPS_PROXY", "https_proxy"):
        assert f"export {name}='http://it'\"'\"'s:p@h:1'\n" in text
    assert "then export SSL_CERT_FILE=/run/secrets/ca" in text and "PIP_CERT=" in text
    assert mark(here).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="^SSL_CERT_FILE: expected a file of certificates"):
        compose_environment(here, {**env, "SSL_CERT_FILE": str(tmp_path / "none.pem")})
