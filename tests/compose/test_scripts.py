"""The scripts with real containers, in a checkout of their own: a new user's path."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.compose.project import (
    FOREIGN_GID,
    FOREIGN_UID,
    ROOT,
    base_image,
    copy_checkout,
    docker,
    newest,
)
from tests.support.processes import SHORT, events, steps
from workloads.run import Run
from workloads.run.integrity import sealed

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

FILES = ("compose.yaml", "compose.cpu.yaml", "compose.multihost.yaml", ".env.example")
LONG = (*SHORT, "train.max_steps=100000", "train.epochs=100000")


class Checkout:
    """A fresh checkout and the scripts in it."""

    def __init__(self, root: Path) -> None:
        self.root = copy_checkout(root)
        for name in FILES:
            shutil.copy(ROOT / name, root / name)
        self.project = f"tatara-test-{uuid4().hex[:8]}"
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env = {**kept, "COMPOSE_PROJECT_NAME": self.project, "OMP_NUM_THREADS": "1"}
        if base := base_image():
            self.env["BASE_IMAGE"] = base
        if os.getuid() == 0:  # as behind sudo: what is made belongs to the one who called it
            self.env |= {"SUDO_UID": str(FOREIGN_UID), "SUDO_GID": str(FOREIGN_GID)}
            for path in (root, *root.rglob("*")):
                os.chown(path, FOREIGN_UID, FOREIGN_GID)

    def start(self, name: str, *words: str, **env: str) -> subprocess.Popen[str]:
        # From somewhere else: a script finds its own repository.
        return subprocess.Popen(
            [self.root / "scripts" / name, *words],
            cwd="/",
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def script(self, name: str, *words: str, **env: str) -> tuple[int, str]:
        """Exit code and everything printed."""
        with self.start(name, *words, **env) as process:
            text, _ = process.communicate(timeout=900)
            return process.returncode, text

    @property
    def run(self) -> Run:
        return newest(self.root / "outputs" / "demo")

    def codes(self) -> dict[str, int]:
        """Exit codes of the containers by service; -1 for one that runs."""
        label = f"label=com.docker.compose.project={self.project}"
        found = {}
        for one in docker("ps", "--all", "--quiet", "--filter", label).split():
            facts = json.loads(docker("inspect", one))[0]
            service = facts["Config"]["Labels"]["com.docker.compose.service"]
            running, code = facts["State"]["Running"], facts["State"]["ExitCode"]
            found[service] = -1 if running else code
        return found


@pytest.fixture
def checkouts(tmp_path: Path, images: Callable[[str], None]) -> Iterator[Callable[[], Checkout]]:
    """Makes checkouts; what they started is removed at the end."""
    images("demo")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    made: list[Checkout] = []

    def make() -> Checkout:
        made.append(Checkout(tmp_path / f"checkout-{len(made)}"))
        return made[-1]

    yield make
    words = ["docker", "compose", "--profile", "*", "down", "--volumes", "--timeout", "1"]
    for one in made:
        subprocess.run(words, cwd=one.root, env=one.env, capture_output=True, timeout=120)


@pytest.fixture
def checkout(checkouts: Callable[[], Checkout]) -> Checkout:
    return checkouts()


def test_from_a_fresh_checkout_to_a_resumed_run(checkout: Checkout) -> None:
    shell = {"SEED": "7", "TATARA__OPTIM__WEIGHT_DECAY": "0.02", "HF_TOKEN": "canary-5f0c"}
    code, text = checkout.script("start_training.sh", "demo", *LONG, **shell)
    assert code == 0, text
    _has_what_the_shell_said(checkout)
    assert "runtime: docker (a Docker engine answers)" in text
    assert "4/4 images: demo" in text and "first step done: outputs/demo/" in text
    assert checkout.codes() == {"demo-master": -1, "demo-worker": -1}

    code, text = checkout.script("start_training.sh")
    assert code == 2 and "a training of demo is running; stop it first" in text

    code, text = checkout.script("stop_training.sh")
    assert code == 0, text
    assert checkout.codes() == {"demo-master": 3, "demo-worker": 3}
    saved = sealed(checkout.run.checkpoints)[-1]
    assert f"newest checkpoint: {saved.relative_to(checkout.root)}" in text

    step = int(saved.name.rpartition("-")[2])
    words = (*LONG, f"train.max_steps={step + 2}", "--resume", checkout.run.id, "--wait")
    code, text = checkout.script("start_training.sh", "demo", *words, **shell)
    assert code == 0, text
    assert f"going on from {saved.name}" in text and max(steps(checkout.run)) == step + 2
    owners = {path.lstat().st_uid for path in (checkout.root / "outputs").rglob("*")}
    assert owners == {int(checkout.env.get("SUDO_UID", os.getuid()))}


def _has_what_the_shell_said(checkout: Checkout) -> None:
    config = checkout.run.config()
    assert (config.train.seed, config.optim.weight_decay) == (7, 0.02)
    token = checkout.root / ".cache" / "HF_TOKEN"
    assert token.stat().st_mode & 0o777 == 0o600
    label = f"label=com.docker.compose.project={checkout.project}"
    for one in docker("ps", "--quiet", "--filter", label).split():
        assert "canary" not in docker("inspect", one)
        assert docker("exec", one, "cat", "/run/secrets/hf_token") == "canary-5f0c"


def test_interrupting_the_wait_stops_and_saves(checkout: Checkout) -> None:
    process = checkout.start("start_training.sh", "demo", "--wait", *LONG)
    end = time.monotonic() + 300
    while time.monotonic() < end and not list(checkout.root.glob("outputs/demo/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the script and what it shows
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 3, text
    assert events(checkout.run, "stopped") and sealed(checkout.run.checkpoints)


def test_set_up_twice_is_set_up_once(checkout: Checkout) -> None:
    code, text = checkout.script(
        "setup_environment.sh", TORCH_INDEX_URL="https://example.invalid/cpu"
    )
    dotenv = checkout.root / ".env"
    assert dotenv.stat().st_mode & 0o777 == 0o600, text
    lines = dotenv.read_text().splitlines()
    assert "TATARA_DOTENV=.env" in lines
    assert "TORCH_INDEX_URL=https://example.invalid/cpu" in lines
    dotenv.write_text(dotenv.read_text().replace("TORCH_INDEX_URL=https", "# "))
    before = sorted(dotenv.read_text().splitlines())
    code, text = checkout.script("setup_environment.sh")
    assert code == 0, text
    assert sorted(dotenv.read_text().splitlines()) == before


def test_a_gpu_profile_is_refused_before_anything_is_built(checkout: Checkout) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("NOT TESTED: this machine has NVIDIA's driver")
    code, text = checkout.script("start_training.sh", "llm-4090")
    assert code == 2
    assert "found no NVIDIA GPU" in text and "nvidia-driver" in text
    assert "this machine cannot train llm-4090 as it is" in text
    assert "Traceback" not in text
    assert not (checkout.root / ".env").exists() and checkout.codes() == {}


def test_two_hosts_on_the_network_of_the_host(checkouts: Callable[[], Checkout]) -> None:
    """Two checkouts that share nothing stand for two hosts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address = probe.getsockname()[0]
    first, second = checkouts(), checkouts()
    words = ("--master", address, "--wait", *SHORT, "train.max_steps=4")
    master = first.start("start_training.sh", "demo", "--node", "0", *words, MASTER_PORT="38171")
    code, text = second.script(
        "start_training.sh", "demo", "--node", "1", *words, MASTER_PORT="38171"
    )
    assert code == 0, text
    text, _ = master.communicate(timeout=300)
    assert master.returncode == 0, text
    assert (first.codes(), second.codes()) == ({"demo-master": 0}, {"demo-worker": 0})
    assert max(steps(first.run)) == 4 and sealed(first.run.checkpoints)
    assert second.run.id == first.run.id and not second.run.metrics.exists()
