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
from tests.support.private_network import INDEX, USER, PrivateNetwork, private_network
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
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env = {**kept, "OMP_NUM_THREADS": "1"}
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

    def compose(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`docker compose …` as somebody types it in the checkout."""
        command = ["docker", "compose", *words]
        return subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=300
        )

    @property
    def label(self) -> str:
        return f"label=com.docker.compose.project.working_dir={self.root}"

    @property
    def run(self) -> Run:
        return newest(self.root / "outputs" / "demo")

    def codes(self) -> dict[str, int]:
        """Exit codes of the containers by service; -1 for one that runs."""
        found = {}
        for container in docker("ps", "--all", "--quiet", "--filter", self.label).split():
            facts = json.loads(docker("inspect", container))[0]
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
    for item in made:
        item.compose("--profile", "*", "down", "--timeout", "1", "--rmi", "local")
        for left in docker("ps", "--all", "--quiet", "--filter", item.label).split():
            docker("rm", "--force", left)


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
    shell = checkout.root / ".cache" / "shell.env"
    assert shell.stat().st_mode & 0o777 == 0o600
    for container in docker("ps", "--quiet", "--filter", checkout.label).split():
        assert "canary" not in docker("inspect", container)
        assert "HF_TOKEN=canary-5f0c\n" in docker("exec", container, "cat", "/run/secrets/shell")


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


@pytest.mark.parametrize("killed", ["demo-worker", "demo-master"])
def test_a_killed_container_is_started_again_while_the_start_waits(
    checkout: Checkout, killed: str
) -> None:
    """O-A9: the worker within the run's own restarts; node 0 with all others, from a checkpoint."""
    words = (*SHORT, "train.max_steps=80")
    with checkout.start("start_training.sh", "demo", *words, "--wait") as started:
        end = time.monotonic() + 600
        while not list(checkout.root.glob("outputs/demo/*/checkpoints/*/complete.json")):
            assert started.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        name = ("--filter", f"label=com.docker.compose.service={killed}")
        (container,) = docker("ps", "--quiet", "--filter", checkout.label, *name).split()
        docker("kill", container)
        text, _ = started.communicate(timeout=600)
    assert started.returncode == 0, text
    assert max(steps(checkout.run)) == 80
    if killed == "demo-worker":
        assert "demo-worker was killed (exit code 137); starting it again" in text
        assert "lost node 1 (demo-worker)" in events(checkout.run, "restarted")[0]["reason"]
    else:
        assert f"restart 1 of 3, going on with {checkout.run.id}" in text
        assert "going on from checkpoint-" in text


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
    assert "NVIDIA driver: no NVIDIA GPU" in text and "; fix: " in text
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
    shell = {"MASTER_PORT": "38171", "TATARA_RENDEZVOUS_SECRET": "canary-" + "5f0c" * 8}
    master = first.start("start_training.sh", "demo", "--node", "0", *words, **shell)
    code, text = second.script("start_training.sh", "demo", "--node", "1", *words, **shell)
    assert code == 0, text
    text, _ = master.communicate(timeout=300)
    assert master.returncode == 0, text
    assert (first.codes(), second.codes()) == ({"demo-master": 0}, {"demo-worker": 0})
    assert max(steps(first.run)) == 4 and sealed(first.run.checkpoints)
    assert second.run.id == first.run.id and not second.run.metrics.exists()


def test_two_checkouts_train_side_by_side_on_one_engine(checkouts: Callable[[], Checkout]) -> None:
    """O-A1: each is a project of its own, and each is stopped by its own script alone."""
    first, second = checkouts(), checkouts()
    for item in (first, second):
        code, text = item.script("start_training.sh", "demo", *LONG)
        assert code == 0, text
    assert first.codes() == second.codes() == {"demo-master": -1, "demo-worker": -1}
    names = [
        json.loads(item.compose("config", "--format", "json").stdout)["name"]
        for item in (first, second)
    ]
    assert len(set(names)) == 2

    code, text = second.script("stop_training.sh")
    assert code == 0 and "newest checkpoint: " in text, text
    assert second.codes() == {"demo-master": 3, "demo-worker": 3}
    assert first.codes() == {"demo-master": -1, "demo-worker": -1}

    # With the other one's .env nothing is recreated, by hand nor by a script.
    shutil.copy(first.root / ".env", second.root / ".env")
    by_hand = second.compose("--profile", "demo", "up", "--detach")
    assert by_hand.returncode != 0
    assert f"{second.root}/.cache/set-up-in{first.root}" in by_hand.stderr
    assert second.compose("--profile", "demo", "build").returncode != 0
    code, text = second.script("stop_training.sh")
    assert code == 0 and "no training of this checkout is running" in text
    assert first.codes() == {"demo-master": -1, "demo-worker": -1}
    assert not events(first.run, "stop requested")

    # Set-up makes it the second checkout's own again.
    code, text = second.script("setup_environment.sh")
    assert code == 0, text
    again = json.loads(second.compose("config", "--format", "json").stdout)["name"]
    assert (
        again == names[1] and second.compose("run", "--rm", "demo-worker", "true").returncode == 0
    )
    assert first.codes() == {"demo-master": -1, "demo-worker": -1}
    code, text = first.script("stop_training.sh")
    assert code == 0 and first.codes() == {"demo-master": 3, "demo-worker": 3}, text
    for item in (first, second):
        code, text = item.script("compose.sh", "down")
        assert code == 0 and item.codes() == {}, text


def test_changed_code_is_what_runs(checkout: Checkout) -> None:
    """O-A2: an image older than the code is built first, by hand too, and uncommitted changes."""
    assert checkout.script("setup_environment.sh")[0] == 0
    words = ("run", "--rm", "-T", "demo-master", "check", "demo", "bogus.setting=1")
    before = checkout.compose(*words)
    assert "unknown setting 'bogus" in before.stderr and before.returncode == 2, before.stderr
    path = checkout.root / "workloads" / "config" / "merge.py"
    path.write_text(path.read_text().replace("unknown setting ", "unknown NEW setting "))
    start = time.monotonic()
    after = checkout.compose(*words)
    assert "unknown NEW setting 'bogus" in after.stderr, after.stderr
    assert time.monotonic() - start < 60


def test_a_line_of_dotenv_that_readers_take_differently_ends_everything(checkout: Checkout) -> None:
    """O-A3: before a folder, an image or a container is made."""
    (checkout.root / ".env").write_text("SEED=1\nTATARA_OUTPUTS: ./runs\n")
    for script in ("setup_environment.sh", "start_training.sh", "stop_training.sh"):
        code, text = checkout.script(script)
        assert code == 2 and ".env:2: expected NAME=value" in text, text
    assert not (checkout.root / "outputs").exists() and not (checkout.root / "runs").exists()
    assert checkout.codes() == {}


def test_a_folder_with_a_hash_is_one_folder_for_all(checkout: Checkout) -> None:
    """O-A3: `TATARA_OUTPUTS=./runs#1` is what scripts make and watch and containers write."""
    (checkout.root / ".env").write_text("TATARA_OUTPUTS=./runs#1\n")
    os.chown(
        checkout.root / ".env", *(int(checkout.env.get(n, -1)) for n in ("SUDO_UID", "SUDO_GID"))
    )
    code, text = checkout.script("setup_environment.sh")
    assert code == 0, text
    done = checkout.compose("run", "--rm", "-T", "demo-master", "touch", "outputs/here")
    assert done.returncode == 0 and (checkout.root / "runs#1" / "here").is_file(), done.stderr
    assert not (checkout.root / "runs").exists()


def test_proxies_authorities_and_mirrors_of_the_shell_arrive(checkout: Checkout) -> None:
    """O-A11, and O-A10: a proxy's password is in no configuration."""
    (checkout.root / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    shell = {
        "HTTPS_PROXY": "http://u:canary-5f0c@proxy.example:1",
        "HF_ENDPOINT": "http://hub.example",
        "HF_HUB_OFFLINE": "1",
        "WANDB_BASE_URL": "http://wandb.example",
        "SSL_CERT_FILE": "ca.pem",
    }
    assert checkout.script("setup_environment.sh")[0] == 0
    code, text = checkout.script("compose.sh", "run", "-T", "demo-master", "env", **shell)
    assert code == 0, text
    for name in ("HTTPS_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE", "WANDB_BASE_URL"):
        assert f"{name}={shell[name]}\n" in text
    assert "SSL_CERT_FILE=/run/secrets/ca\n" in text and "NO_PROXY=localhost," in text
    (left,) = docker("ps", "--all", "--quiet", "--filter", checkout.label).split()
    assert "canary" not in docker("inspect", left)
    assert "canary" not in docker(
        "history", "--no-trunc", json.loads(docker("inspect", left))[0]["Image"]
    )
    # What a build learns stands in a secret, and a file of authorities that is not there is named.
    assert "canary-5f0c" in next(checkout.root.glob(".cache/set-up-in/**/checkout-0")).read_text()
    missing = {**shell, "SSL_CERT_FILE": "none.pem"}
    code, text = checkout.script("compose.sh", "run", "-T", "demo-master", "env", **missing)
    assert code == 2 and "SSL_CERT_FILE: expected a file of certificates" in text


_DOWNLOADS = "{ [ ! -f /run/secrets/checkout ] || . /run/secrets/checkout; }"
_MOUNTS = "--mount=type=secret,id=checkout --mount=type=secret,id=ca"


def test_a_build_and_a_run_behind_a_proxy_with_an_own_authority(
    checkout: Checkout, tmp_path: Path
) -> None:
    """O-A11, with a real proxy that asks for a password, and an index that only it knows."""
    words = ("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    gateway = docker(*words).strip()
    with private_network(tmp_path, gateway) as network:
        shell = {
            "HTTPS_PROXY": network.proxy,
            "HTTP_PROXY": network.proxy,
            "SSL_CERT_FILE": str(network.authority),
            "PIP_INDEX_URL": f"https://{INDEX}/simple",
        }
        assert checkout.script("setup_environment.sh", **shell)[0] == 0
        _downloads_in_a_build(checkout, network)
        before = len(network.tunnels)
        assert before and not network.refused
        code = (
            f"import urllib.request as r, ssl; print(r.urlopen('https://{INDEX}/simple/').read())"
        )
        run = ("run", "--rm", "-T", "--no-deps", "demo-master", "python", "-c", code)
        status, text = checkout.script("compose.sh", *run, **shell)
        assert status == 0 and "tatara_probe" in text, text
        assert len(network.tunnels) > before and not network.refused
    assert USER.partition(":")[2] not in text


def _downloads_in_a_build(checkout: Checkout, network: PrivateNetwork) -> None:
    """A download as the Dockerfile's own are made, with what set-up has written for them."""
    dockerfile = (ROOT / "images" / "Dockerfile").read_text()
    assert _DOWNLOADS in dockerfile and _MOUNTS in dockerfile
    place = checkout.root / "probe"
    place.mkdir()
    (place / "Dockerfile").write_text(
        f"FROM {base_image() or 'python:3.11-slim-bookworm'}\n"
        f"RUN {_MOUNTS} {_DOWNLOADS} \\\n"
        "  && pip download --no-deps --no-cache-dir -d /tmp tatara-probe==1.0 \\\n"
        "  && for way in http https; do \\\n"
        f"    echo deb [trusted=yes] $way://{INDEX}/apt/$way ./; done \\\n"
        "    >/etc/apt/sources.list && rm -rf /etc/apt/sources.list.d \\\n"
        "  && apt-get update && apt-cache policy tatara-probe | grep -c /apt | grep -qx 2\n"
    )
    (settings,) = checkout.root.glob(".cache/set-up-in/**/checkout-0")
    secrets = ("--secret", f"id=checkout,src={settings}")
    secrets += ("--secret", f"id=ca,src={network.authority}")
    built = subprocess.run(
        ["docker", "build", "-q", "--no-cache", *secrets, "."],
        cwd=place,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    image = built.stdout.strip()
    assert "canary" not in docker("history", "--no-trunc", image)
    docker("rmi", image)
