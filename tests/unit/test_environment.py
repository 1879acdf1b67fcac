"""`.env`, secrets and the names that libraries expect."""

import os
from pathlib import Path

import pytest

from workloads import environment
from workloads.environment import apply, load, without_secrets
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place without secrets of the machine, where `.env` would be looked for."""
    monkeypatch.setattr(environment, "SECRET_FOLDER", tmp_path / "secrets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_set(folder: Path) -> None:
    assert load({}) == {}


def test_dotenv_is_read_from_here_and_the_environment_wins(folder: Path) -> None:
    (folder / ".env").write_text("BATCH_SIZE=2\nLEARNING_RATE=3e-5\n")
    env = load({"BATCH_SIZE": "8"})
    assert env == {"BATCH_SIZE": "8", "LEARNING_RATE": "3e-5"}


def test_how_dotenv_files_are_written(folder: Path) -> None:
    path = folder / "other.env"
    path.write_text(
        "# a comment\n"
        "export MODEL_NAME=owner/model\n"
        "WANDB_PROJECT_NAME='two words'  # why\n"
        'SUMMARY="with # inside"\n'
        "SPACES = 1 \n"
        "EMPTY=\n"
    )
    assert load({}, path) == {
        "MODEL_NAME": "owner/model",
        "WANDB_PROJECT_NAME": "two words",
        "SUMMARY": "with # inside",
        "SPACES": "1",
    }


def test_a_dotenv_file_of_another_editor(folder: Path) -> None:
    (folder / ".env").write_bytes("\ufeffSEED=3\r\nSUMMARY=試し\r\n".encode())
    assert load({}) == {"SEED": "3", "SUMMARY": "試し"}
    (folder / ".env").write_bytes("SEED=3 # 試し".encode("shift-jis"))
    with pytest.raises(UserError, match=r"\.env: expected a readable file in UTF-8"):
        load({})


def test_an_empty_variable_does_not_hide_dotenv(folder: Path) -> None:
    """Compose hands every unset `${VAR:-}` over as an empty one."""
    (folder / ".env").write_text("SEED=3\n")
    assert load({"SEED": "", "OTHER": ""}) == {"SEED": "3"}


def test_no_gpu_is_a_choice_that_stays(folder: Path) -> None:
    """`CUDA_VISIBLE_DEVICES= tatara train` on a machine with GPUs, as `make demo` does it."""
    (folder / ".env").write_text("CUDA_VISIBLE_DEVICES=0,1\n")
    assert environment.load({"CUDA_VISIBLE_DEVICES": ""})["CUDA_VISIBLE_DEVICES"] == ""
    assert environment.load({})["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_folder_named_dotenv_is_no_file(folder: Path) -> None:
    (folder / ".env").mkdir()
    assert load({"SEED": "1"}) == {"SEED": "1"}


@pytest.mark.parametrize("name", ["HUGGINGFACE_API_KEY", "HUGGING_FACE_HUB_TOKEN"])
def test_the_documents_names_reach_the_library(name: str, folder: Path) -> None:
    (folder / ".env").write_text(f"{name}=hf_one\n")
    assert load({})["HF_TOKEN"] == "hf_one"
    assert load({"HF_TOKEN": "hf_two"})["HF_TOKEN"] == "hf_two"
    assert load({"HF_TOKEN": ""})["HF_TOKEN"] == "hf_one"


def test_secrets_from_named_files(folder: Path) -> None:
    (folder / "token").write_text("hf_file\n")
    env = load({"HF_TOKEN_FILE": str(folder / "token")})
    assert env["HF_TOKEN"] == "hf_file"
    both = load({"HF_TOKEN_FILE": str(folder / "token"), "HF_TOKEN": "hf_value"})
    assert both["HF_TOKEN"] == "hf_value"


def test_secrets_that_docker_mounts(folder: Path) -> None:
    (folder / "secrets").mkdir()
    (folder / "secrets" / "wandb_api_key").write_text("key\n")
    assert load({}) == {"WANDB_API_KEY": "key"}


def test_an_empty_secret_file_sets_nothing(folder: Path) -> None:
    (folder / "token").write_text("\n")
    assert "HF_TOKEN" not in load({"HF_TOKEN_FILE": str(folder / "token")})


@pytest.mark.parametrize("name", ["none", "."])
def test_a_secret_file_that_cannot_be_read(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match="WANDB_API_KEY_FILE: expected a readable file, found"):
        load({"WANDB_API_KEY_FILE": str(folder / name)})


def test_apply_makes_it_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TATARA_TEST_OLD", "1")
    monkeypatch.setenv("TATARA_TEST_NEW", "")
    apply({"TATARA_TEST_NEW": "2"})
    assert (os.environ["TATARA_TEST_OLD"], os.environ["TATARA_TEST_NEW"]) == ("1", "2")


def test_secrets_are_blotted_out() -> None:
    env = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "w4nd8", "SEED": "42"}
    text = "seed 42, token hf_secret, twice hf_secret, key w4nd8"
    shown = without_secrets(text, env)
    assert shown == "seed 42, token <HF_TOKEN>, twice <HF_TOKEN>, key <WANDB_API_KEY>"


def test_secrets_under_other_names_are_blotted_out() -> None:
    shown = without_secrets("key hf_old", {"HUGGINGFACE_API_KEY": "hf_old"})
    assert "hf_old" not in shown
    assert without_secrets("nothing set", {"HF_TOKEN": ""}) == "nothing set"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "OPENAI_API_KEY",
        "GITHUB_PAT",
        "DB_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "SMTP_PASSWD",
        "my_secret",
        "PGPASSWORD",
        "NGC_APIKEY",
        "openaiApiKey",
        "SMTP_PASS",
        "MYSQL_PWD",
        "REDIS_AUTH",
        "AZURE_CONN_STRING",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SqlConnectionString",
        "SENTRY_DSN",
        "SLACK_WEBHOOK_URL",
        "BLOB_SAS",
        "SESSION_JWT",
        "API_KEYS",
        "GOOGLE_CREDS_JSON",
        "HF_TOKEN2",
        "OPENAI_API_KEY_2",
        "OPENAI_API_KEY1",
        "db.password.old",
        "deploy-key",
        "BOT_API_TOKENS",
        "DOOR_PASSCODE",
        "SSH_PRIVATE_ED25519",
    ],
)
def test_every_secret_like_value_is_blotted_out(name: str) -> None:
    """O-A10: not only the names that we know."""
    shown = without_secrets("key canary-5f0c, again canary-5f0c", {name: "canary-5f0c"})
    assert shown == f"key <{name}>, again <{name}>"


def test_a_password_in_an_address_is_blotted_out() -> None:
    env = {"HTTPS_PROXY": "http://u:canary-5f0c@proxy.example:3128", "HTTP_PROXY": "http://p:3128"}
    shown = without_secrets(f"via {env['HTTPS_PROXY']} and {env['HTTP_PROXY']}", env)
    assert shown == "via http://u:<HTTPS_PROXY>@proxy.example:3128 and http://p:3128"


@pytest.mark.parametrize(
    "value",
    [
        "https://canary-5f0c-77e1-aa@mirror.example/simple",
        "https://blob.example/x?sv=1&sig=canary-5f0c-77e1-aa&se=2",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=canary-5f0c-77e1-aa;End=x",
        "host=db user=a password=canary-5f0c-77e1-aa",
        "postgres://u:canary%2D5f0c-77e1-aa@db.example/x",
    ],
)
def test_a_secret_inside_a_value_is_blotted_out_whatever_the_name(value: str) -> None:
    """O-A10: as it is written, and as a library decodes it."""
    assert "5f0c" not in without_secrets(f"at {value}: canary-5f0c-77e1-aa", {"PLACE": value})


@pytest.mark.parametrize(
    "shown",
    ["p%40ss%2Fword%0A2", r"p@ss/word\n2", "p@ss/word\n2"],
    ids=["in an address", "by repr", "plain"],
)
def test_a_secret_is_blotted_out_as_libraries_write_it(shown: str) -> None:
    assert without_secrets(f"at {shown}", {"DB_PASSWORD": "p@ss/word\n2"}) == "at <DB_PASSWORD>"


def test_a_secret_that_begins_another_leaves_no_rest() -> None:
    env = {"FIRST_TOKEN": "canary-5f0c", "SECOND_TOKEN": "canary-5f0c-77e1"}
    assert without_secrets("canary-5f0c-77e1", env) == "<SECOND_TOKEN>"


@pytest.mark.parametrize("value", ["hf_a\nhf_b", "hf_a\x1b[0m", "hf_a\u200bb"])
def test_a_token_of_several_lines_is_refused_and_not_shown(value: str, folder: Path) -> None:
    """A library's error would show it, in a form in which nobody looks for it."""
    (folder / "token").write_text(value)
    for env in ({"HF_TOKEN": value}, {"HF_TOKEN_FILE": "token"}):
        with pytest.raises(UserError, match="^HF_TOKEN: expected one line") as error:
            load(env)
        assert "hf_a" not in str(error.value)
    assert load({"HF_TOKEN": " hf_a\n"}) == {"HF_TOKEN": "hf_a"} and load({"HF_TOKEN": " "}) == {}
    (folder / "token").write_bytes(b"\xff\xfeh")
    with pytest.raises(UserError, match="^HF_TOKEN_FILE: expected a readable file"):
        load({"HF_TOKEN_FILE": "token"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TATARA__EVALUATION__MAX_NEW_TOKENS", "1024000"),
        ("TOKENIZERS_PARALLELISM", "false-or-true"),
        ("HF_TOKEN_PATH", "/home/user/token"),
        ("AUTH", "none"),
        ("PWD", "/home/user/tatara"),
        ("OLDPWD", "/home/user"),
        ("COMPASS", "to-the-north"),
        ("KEYBOARD", "of-japan"),
        ("TATARA_ARGS", "data.sort_key=question"),
        ("GIT_REMOTE", "https://yamada@git.example/x"),
    ],
)
def test_what_is_no_secret_stays(name: str, value: str) -> None:
    assert without_secrets(f"value {value}", {name: value}) == f"value {value}"
