"""start_training.sh and stop_training.sh without Docker: a real training, found and stopped."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import SHORT, events, steps
from tests.support.tiny_policy import episodes
from tests.support.waiting import until
from workloads.run import Run
from workloads.run.integrity import sealed

pytestmark = [pytest.mark.shell, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LONG = (*SHORT, "train.max_steps=100000", "train.epochs=100000", "parallel.nodes=1")
PATIENCE = 240.0


class Checkout:
    """A copy of the project that uses this environment's Python; nothing of it runs in Docker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("scripts", "profiles", "data/demo"):
            shutil.copytree(ROOT / name, root / name)
        for name in (".env.example", "pyproject.toml", "requirements-dev.lock"):
            shutil.copy(ROOT / name, root / name)
        shutil.copy(ROOT / "Makefile", root)
        (root / "workloads").symlink_to(ROOT / "workloads")
        bin_folder = root / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        program = bin_folder / "python"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        program.chmod(0o755)
        (root / "scripts" / "local_setup.py").write_text("# ready\n")
        (root / ".env").touch()

    def script(self, name: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        # From somewhere else: a script finds its own repository.
        return subprocess.run(
            [self.root / "scripts" / name, *words],
            cwd="/",
            env=self.env | settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--silent", *words]
        return subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )

    @property
    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "TATARA_RUNTIME": "local", "OMP_NUM_THREADS": "1"}

    @property
    def run(self) -> Run:
        return Run(max((self.root / "outputs" / "demo").glob("*/config.json")).parent)


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., Checkout]:
    made = Checkout(tmp_path / "checkout")
    yield made
    made.script("stop_training.sh")
    made.script("stop_training.sh")


@pytest.mark.runs("make stop", "scripts/stop_training.sh")
def test_started_watched_stopped_and_gone_on_with(checkout: Checkout) -> None:
    started = checkout.script("start_training.sh", "demo", *LONG)
    assert started.returncode == 0, started.stdout + started.stderr
    assert "runtime: local (TATARA_RUNTIME says so)" in started.stderr
    assert f"first step done: outputs/demo/{checkout.run.id}" in started.stdout
    assert steps(checkout.run)

    again = checkout.script("start_training.sh", "demo")
    assert again.returncode == 2
    assert "a training of demo is running; stop it first" in again.stderr

    # A copy made meanwhile has the note of a process that is not its own.
    copy = Checkout.__new__(Checkout)
    copy.root = checkout.root.with_name("copy of it")
    shutil.copytree(checkout.root, copy.root, symlinks=True)
    said = copy.script("stop_training.sh").stdout
    assert said == "no training of this checkout is running\n"
    assert not events(checkout.run, "stopped")

    stopped = checkout.script("stop_training.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    newest = sealed(checkout.run.checkpoints)[-1]
    assert f"newest checkpoint: {newest.relative_to(checkout.root)}" in stopped.stdout
    assert f"--resume {checkout.run.id}" in stopped.stdout
    assert events(checkout.run, "stopped")

    idle = checkout.make("stop")
    assert idle.stdout.strip() == "no training of this checkout is running"

    step = int(newest.name.rpartition("-")[2])
    words = [*LONG, f"train.max_steps={step + 2}", "--resume", checkout.run.id, "--wait"]
    resumed = checkout.script("start_training.sh", "demo", *words)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"going on from {newest.name}" in resumed.stdout
    assert max(steps(checkout.run)) == step + 2


def test_one_node_by_a_word_stopped_from_elsewhere_while_its_start_waits(
    checkout: Checkout,
) -> None:
    """The script that waits removes the note of the job, while the other still looks for it."""
    start = [checkout.root / "scripts" / "start_training.sh", "demo", *LONG[:-1], "--wait"]
    with (checkout.root / "said").open("w") as said:
        env = {**checkout.env, "NODES": "1"}
        started = subprocess.Popen(start, env=env, stdout=said, stderr=subprocess.STDOUT)
    end = time.monotonic() + PATIENCE
    while not list(checkout.root.glob("outputs/demo/*/metrics.jsonl")):
        assert started.poll() is None and time.monotonic() < end, said.name
        time.sleep(0.05)
    stopped = checkout.script("stop_training.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "stopped; newest checkpoint" in stopped.stdout
    assert started.wait(PATIENCE) == 3
    assert set(checkout.run.statuses()) == {0}
    assert len(events(checkout.run, "started")[0]["hosts"]) == 1


def test_a_killed_supervisor_is_started_again_while_the_start_waits(checkout: Checkout) -> None:
    """O-A9, without containers; a stop that had to kill it is no reason to start it again."""
    start = [checkout.root / "scripts" / "start_training.sh", "demo", *LONG, "--wait"]
    with (checkout.root / "said").open("w") as said:
        started = subprocess.Popen(start, env=checkout.env, stdout=said, stderr=subprocess.STDOUT)
    end = time.monotonic() + PATIENCE

    def until(condition: Callable[[], object]) -> None:
        while not condition():
            assert started.poll() is None and time.monotonic() < end, Path(said.name).read_text()
            time.sleep(0.05)

    running = checkout.root / ".cache" / "running"
    until(lambda: list(checkout.root.glob("outputs/demo/*/checkpoints/*/complete.json")))
    (first,) = [int(path.name) for path in running.iterdir()]
    os.kill(first, signal.SIGKILL)
    until(lambda: "going on from checkpoint-" in Path(said.name).read_text())
    told = f"demo was killed (exit code 137); restart 1 of 3, going on with {checkout.run.id}"
    assert told in Path(said.name).read_text()
    step = max(steps(checkout.run))
    until(lambda: max(steps(checkout.run)) > step)
    (second,) = [int(path.name) for path in running.iterdir() if path.name != str(first)]
    (checkout.root / ".cache" / "stopping").write_text(f"0 {second}")
    os.kill(second, signal.SIGKILL)
    assert started.wait(PATIENCE) == 137


def test_one_start_at_a_time(checkout: Checkout) -> None:
    """Two that look at the same moment see nothing running; each would recreate the other's."""
    (checkout.root / ".cache").mkdir()
    with (checkout.root / ".cache" / "starting.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = checkout.script("start_training.sh", "demo", *LONG)
    assert refused.returncode == 2
    assert "another start of this checkout is under way" in refused.stderr


def test_a_mistake_ends_the_start_with_its_exit_code(checkout: Checkout) -> None:
    words = (*LONG, "optim.learning_rat=1e-5")
    started = checkout.script("start_training.sh", "demo", *words)
    assert started.returncode == 2
    assert "learning_rat" in started.stdout + started.stderr


@pytest.mark.runs("make train", "scripts/monitor_training.sh")
def test_the_monitor_shows_the_run(checkout: Checkout) -> None:
    done = checkout.make("train", f"ARGS={' '.join((*LONG, 'train.max_steps=2'))}")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = checkout.script("monitor_training.sh", "--once")
    assert shown.returncode == 0, shown.stderr
    assert checkout.run.id in shown.stdout


def test_a_second_stop_ends_at_once(checkout: Checkout) -> None:
    assert checkout.script("start_training.sh", "demo", *LONG).returncode == 0
    pid = next((checkout.root / ".cache" / "running").iterdir()).name
    rank = checkout.run.statuses()[0]["pid"]
    os.kill(rank, 19)  # a suspended rank cannot agree to stop
    first = subprocess.Popen(
        [checkout.root / "scripts" / "stop_training.sh"],
        env=checkout.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    mark = checkout.root / ".cache" / "stopping"
    until(mark.is_file)
    second = checkout.script("stop_training.sh")
    assert second.returncode == 0, second.stderr
    assert "asked before: ending now" in second.stdout
    assert events(checkout.run, "stopped")[0]["reason"].startswith("stopped at once")
    first_said, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, first_said
    saved = sealed(checkout.run.checkpoints)
    left = "stopped; newest checkpoint: " if saved else "stopped before there was anything to save"
    for said in (first_said, second.stdout + second.stderr):
        assert left in said
        assert "No such" not in said and "Traceback" not in said
    assert not Path(f"/proc/{pid}").exists() and not Path(f"/proc/{rank}").exists()


def test_a_recipe_is_taken_and_an_unknown_one_refused(checkout: Checkout) -> None:
    episodes(checkout.root / "data/logs")
    words = ("data.source=data/logs", "train.max_steps=1", "evaluation.samples=1", "--wait")
    done = checkout.script("start_training.sh", "vla", *words, RECIPE="tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((checkout.root / "outputs/vla-tiny").glob("*/final/config.json"))
    refused = checkout.script("start_training.sh", "vla", *words, RECIPE="7gb")
    assert refused.returncode == 2
    assert "RECIPE: expected auto or one of vla-16gb" in refused.stdout + refused.stderr


def test_the_robot_policys_steps(checkout: Checkout) -> None:
    episodes(checkout.root / "data/tfrecord_logs")
    shown = checkout.script("docker/vla_finetune.sh", "test-dataset")
    assert shown.returncode == 0, shown.stderr
    assert "3 episodes, 15 steps" in shown.stdout
    words = ("train.max_steps=1", "evaluation.samples=1")
    done = checkout.script("docker/vla_finetune.sh", "train", *words, RECIPE="tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((checkout.root / "outputs/vla-tiny").glob("*/final/tatara.json"))
    for wrong in (("train-multi-gpu", "none"), ("fly",), ()):
        assert checkout.script("docker/vla_finetune.sh", *wrong).returncode == 2
