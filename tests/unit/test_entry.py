"""What the images' entry point makes of the environment that Compose gives it."""

import os
from pathlib import Path

import pytest

from workloads.entry import make_home, prepared, start
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path


def test_secrets_of_a_mounted_env_file_and_nothing_else_of_it(secrets: Path) -> None:
    (secrets / "dotenv").write_text("HUGGINGFACE_API_KEY='one'\nWANDB_API_KEY=two\nBATCH_SIZE=9\n")
    found = prepared({"HF_TOKEN": "", "WANDB_API_KEY": "", "PATH": "/bin"}, secrets)
    assert found == {"PATH": "/bin", "HUGGINGFACE_API_KEY": "one", "WANDB_API_KEY": "two"}


def test_a_value_that_is_set_wins(secrets: Path) -> None:
    (secrets / "dotenv").write_text("HF_TOKEN=of-file\n")
    assert prepared({"HF_TOKEN": "set"}, secrets)["HF_TOKEN"] == "set"


def test_nothing_is_not_a_choice_but_no_gpu_is(secrets: Path) -> None:
    env = {"NCCL_SOCKET_IFNAME": "", "GLOO_SOCKET_IFNAME": "", "CUDA_VISIBLE_DEVICES": ""}
    assert prepared(env, secrets) == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGINGFACE_API_KEY", "WANDB_API_KEY"])
def test_a_secret_that_did_not_arrive_is_told(secrets: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is set outside of the container"):
        prepared({"TATARA_SECRETS_OUTSIDE": f" {name} "}, secrets)


def test_a_secret_that_came_as_a_file_is_there(secrets: Path) -> None:
    (secrets / "hf_token").write_text("of-file")
    assert prepared({"TATARA_SECRETS_OUTSIDE": "HUGGINGFACE_API_KEY"}, secrets) == {}


def test_a_file_of_its_own_goes_before_the_file_of_all(secrets: Path) -> None:
    (secrets / "dotenv").write_text("HF_TOKEN=old\nWANDB_API_KEY=key\n")
    (secrets / "hf_token").write_text("new")
    assert prepared({}, secrets) == {"WANDB_API_KEY": "key"}


def test_no_secret_is_no_mistake(secrets: Path) -> None:
    (secrets / "dotenv").symlink_to("/dev/null")
    assert prepared({"TATARA_SECRETS_OUTSIDE": "   "}, secrets) == {}


def test_home_is_made_or_its_owner_named(tmp_path: Path) -> None:
    make_home({"HOME": str(tmp_path / "cache" / "home")})
    assert (tmp_path / "cache" / "home").is_dir()
    with pytest.raises(UserError, match=f"one of uid {os.getuid()} .*setup_environment.sh"):
        make_home({"HOME": str(_file(tmp_path) / "home")})


def _file(folder: Path) -> Path:
    path = folder / "no-folder"
    path.write_text("")
    return path


def test_a_word_that_is_nothing_names_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert start(["no-such-program-here"]) == 2
    assert "'no-such-program-here' is neither a command (train," in capsys.readouterr().err
