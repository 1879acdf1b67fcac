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


def test_all_of_a_mounted_env_file(secrets: Path) -> None:
    (secrets / "dotenv").write_text("HUGGINGFACE_API_KEY='one'\nWANDB_API_KEY=two\nBATCH_SIZE=9\n")
    found = prepared({"HF_TOKEN": "", "WANDB_API_KEY": "", "PATH": "/bin"}, secrets)
    assert found == {"PATH": "/bin", "HUGGINGFACE_API_KEY": "one", "WANDB_API_KEY": "two"} | {
        "BATCH_SIZE": "9"
    }


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


def test_what_the_shell_said_goes_before_the_file_and_the_container_before_both(
    secrets: Path,
) -> None:
    (secrets / "dotenv").write_text("SEED=1\nMODEL_NAME=file\nNNODES=3\nCUDA_VISIBLE_DEVICES=0\n")
    (secrets / "shell").write_text("SEED=2\nOPENAI_API_KEY='a b'\n")
    found = prepared({"NNODES": "2", "RUN_ID": "", "CUDA_VISIBLE_DEVICES": ""}, secrets)
    assert found == {
        "NNODES": "2",
        "RUN_ID": "",
        "CUDA_VISIBLE_DEVICES": "",
        "SEED": "2",
        "MODEL_NAME": "file",
        "OPENAI_API_KEY": "a b",
    }


def test_authorities_are_those_that_were_mounted(secrets: Path) -> None:
    """O-A11: a path of the host means nothing in a container."""
    (secrets / "dotenv").write_text("SSL_CERT_FILE=/etc/own.pem\nHF_TOKEN_FILE=/home/a/token\n")
    assert prepared({}, secrets) == {}
    (secrets / "ca").write_text("-----BEGIN CERTIFICATE-----")
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    assert prepared({}, secrets) == dict.fromkeys(names, str(secrets / "ca"))


def test_behind_a_proxy_the_jobs_own_hosts_are_reached_directly(secrets: Path) -> None:
    (secrets / "dotenv").write_text("HTTPS_PROXY=http://u:secret@p:3128\nNO_PROXY=.example\n")
    env = {"MASTER_ADDR": "demo-master", "TATARA_VLLM_URL": "http://grpo-vllm:8000"}
    found = prepared(env, secrets)
    assert found["NO_PROXY"] == ".example,localhost,127.0.0.1,demo-master,grpo-vllm"
    assert found["no_proxy"] == found["NO_PROXY"]
    assert "NO_PROXY" not in prepared(env, secrets / "none")
