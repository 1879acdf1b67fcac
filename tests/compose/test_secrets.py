"""A secret reaches the training and nothing that others can read."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compose.project import Project, arguments, build_there, copy_checkout, docker
from tests.support.processes import SHORT

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

# In two parts, so that this file does not hold it.
CANARY = "canary-" + "5f0c77e1"


def hand_in(project: Project, text: str) -> Path:
    """A user's .env that is theirs alone."""
    dotenv = project.folder / "dotenv"
    dotenv.write_text(text)
    dotenv.chmod(0o600)
    shutil.chown(dotenv, project.uid, project.gid)
    return dotenv


# O-A10: what a .env may hold, our own names and others.
SECRET = {
    **dict.fromkeys(("HUGGINGFACE_API_KEY", "WANDB_API_KEY", "OPENAI_API_KEY"), CANARY),
    **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DB_PASSWORD"), CANARY),
    "HTTPS_PROXY": f"http://u:{CANARY}@proxy.example:3128",
    **dict.fromkeys(("GITHUB_PAT", "MY_APIKEY", "SMTP_PASS", "SENTRY_DSN"), CANARY),
    "AZURE_CONN_STRING": f"'AccountName=a;AccountKey={CANARY};EndpointSuffix=x'",
    "MY_OWN": f"'{CANARY} # and more'",
}


def test_a_secret_trains_and_is_nowhere_to_be_read(project: Callable[..., Project]) -> None:
    words = arguments(*SHORT, "train.max_steps=2", "tracking.wandb=offline")
    demo = project(**SECRET, **words)
    assert CANARY not in demo.compose("config").stdout
    demo.up("demo-master", "demo-worker")
    demo.run()
    shown = docker("exec", demo.container("demo-master"), "sh", "-c", "cat /proc/*/cmdline || true")
    assert CANARY not in shown
    demo.ends(demo_master=0, demo_worker=0)
    for service in ("demo-master", "demo-worker"):
        assert CANARY not in docker("inspect", demo.container(service))
    assert CANARY not in demo.logs()
    for path in demo.outputs.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("way", ["dotenv", "file"])
def test_a_token_is_there_for_programs_too(project: Callable[..., Project], way: str) -> None:
    demo = project()
    if way == "dotenv":
        demo.write_settings(**SECRET)
        program = ["printenv", "AWS_SECRET_ACCESS_KEY"]
    else:
        path = hand_in(demo, CANARY)
        demo.write_settings(HF_TOKEN_FILE=str(path))
        program = ["cat", "/run/secrets/hf_token"]
    done = demo.compose("run", "--rm", "-T", "demo-master", *program)
    assert done.stdout.strip() == CANARY


def test_a_token_that_would_not_arrive_is_told(project: Callable[..., Project]) -> None:
    demo = project(HF_TOKEN=CANARY, TATARA_DOTENV="/dev/null")
    done = demo.compose("run", "--rm", "-T", "demo-master", "check", "demo", check=False)
    assert done.returncode == 2
    assert "HF_TOKEN is set outside of the container" in done.stderr
    assert "put it into .env" in done.stderr and CANARY not in done.stderr


SECRET_PLACES = (
    ".env",
    ".env.local",
    "data/private.jsonl",
    "outputs/run/log",
    "token.txt",
    ".cache/home/.netrc",
    ".git/config",
    "workloads/.env",
    "profiles/.env",
)


def test_no_layer_holds_what_lies_in_the_checkout(
    images: Callable[[str], None], tmp_path: Path
) -> None:
    images("demo")
    copy_checkout(tmp_path)
    for name in SECRET_PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CANARY)
    image = build_there(tmp_path)
    try:
        assert _holds(image, b"workloads/entry.py") and not _holds(image, CANARY.encode())
        assert CANARY not in docker("history", "--no-trunc", image) + docker("inspect", image)
    finally:
        docker("rmi", image)


def _holds(image: str, wanted: bytes) -> bool:
    """Whether the bytes stand anywhere in the layers, which an engine saves uncompressed."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        rest = b""
        found = False
        while block := saving.stdout.read(1 << 22):
            found = found or wanted in rest + block
            rest = block[-len(wanted) :]
    return found
