"""Containers that are killed, stopped, or cut off, and what their job makes of it."""

import subprocess
import time
from collections.abc import Callable

import pytest

from tests.compose.project import Project, arguments, docker
from tests.support.processes import SHORT, events, losses, state, steps
from workloads.run.integrity import sealed

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

NODES = ("demo-master", "demo-worker")
# So many that what befalls them in the tenth comes before the last, on however busy a machine.
STEPS = 60
LONGER = (*SHORT, f"train.max_steps={STEPS}")


def test_a_rank_killed_in_the_worker_restarts_and_finishes(project: Callable[..., Project]) -> None:
    demo = project(**arguments(*LONGER))
    demo.up(*NODES)
    run = demo.until_step(9)
    demo.kill_rank("demo-worker", 1)
    demo.ends(demo_master=0, demo_worker=0)
    assert "rank 1 was ended by SIGKILL" in events(run, "restarted")[0]["reason"]
    assert max(steps(run)) == STEPS
    # Every step from the last checkpoint on was done again, none before it.
    repeated = [step for step in set(steps(run)) if steps(run).count(step) > 1]
    assert all(step > 8 for step in repeated)


def test_a_killed_worker_container_is_named_and_may_return(
    project: Callable[..., Project],
) -> None:
    demo = project(**arguments(*LONGER))
    demo.up(*NODES)
    run = demo.until_step(9)
    docker("kill", demo.container("demo-worker"))
    seconds = demo.until(lambda: bool(events(run, "restarted")), "restart", 60)
    assert seconds < 30
    assert "lost node 1 (demo-worker)" in events(run, "restarted")[0]["reason"]
    docker("start", demo.container("demo-worker"))
    demo.ends(demo_master=0, demo_worker=0)
    assert max(steps(run)) == STEPS


def test_a_worker_container_that_stays_away_ends_the_job_worth_a_retry(
    project: Callable[..., Project],
) -> None:
    words = (*SHORT, "train.max_steps=1000", "parallel.node_timeout=15", "parallel.restarts=1")
    demo = project(**arguments(*words))
    demo.up(*NODES)
    run = demo.until_step(9)
    docker("kill", demo.container("demo-worker"))
    demo.ends(demo_master=75)
    assert "node 1" in events(run, "failed")[0]["reason"]
    assert "--resume" in demo.logs("demo-master")
    assert sealed(run.checkpoints)


def test_a_stopped_master_saves_and_resumes_to_the_same_weights(
    project: Callable[..., Project],
) -> None:
    whole = project(**arguments(*LONGER))
    whole.up(*NODES)
    part = project(**arguments(*LONGER))
    whole.ends(demo_master=0, demo_worker=0)
    part.up(*NODES)
    run = part.until_step(5)
    docker("stop", "--time", "120", part.container("demo-master"), timeout=180)
    part.ends(demo_master=3, demo_worker=3)
    stopped_at = events(run, "stop requested")[0]["step"]
    assert sealed(run.checkpoints)[-1].name == f"checkpoint-{stopped_at}"
    part.write_settings(**arguments(*LONGER, "--resume", "latest"))
    part.up(*NODES)
    part.ends(demo_master=0, demo_worker=0)
    assert part.run().path == run.path
    assert losses(run) == losses(whole.run())
    assert state(run) == state(whole.run())


def test_a_network_cut_of_half_a_minute(project: Callable[..., Project]) -> None:
    demo = project(**arguments(*LONGER))
    demo.up(*NODES)
    run = demo.until_step(9)
    network, worker = f"{demo.name}_training", demo.container("demo-worker")
    docker("network", "disconnect", network, worker)
    cut = time.monotonic()
    # What is tested is a cut of this length, so that there is no event to wait for.
    time.sleep(30)
    docker("network", "connect", "--alias", "demo-worker", network, worker)
    assert time.monotonic() - cut >= 30
    demo.ends(demo_master=0, demo_worker=0)
    assert max(steps(run)) == STEPS
    assert sorted(set(steps(run))) == list(range(1, STEPS + 1))


def test_two_output_folders_stop_resume_and_export(project: Callable[..., Project]) -> None:
    words = (*LONGER, "export.enabled=true")
    # Nodes that share no folder have no file with the secret of the run: .env holds it.
    secret = {"TATARA_RENDEZVOUS_SECRET": "shared-by-two-nodes-alone-long-enough"}
    demo = project(files=("compose.yaml", "own.yaml"), **arguments(*words), **secret)
    other = demo.folder / "other"
    override = demo.folder / "own.yaml"
    override.write_text(
        "services:\n  demo-worker:\n    volumes:\n"
        f"      - {{type: bind, source: {other}, target: /workspace/outputs}}\n"
    )
    demo.files = ("compose.yaml", str(override))
    demo.up(*NODES)
    run = demo.until_step(5)
    assert events(run, "started")[0]["shared"] is False
    docker("stop", "--time", "120", demo.container("demo-worker"), timeout=180)
    demo.ends(demo_master=3, demo_worker=3)
    assert sealed(run.checkpoints)
    demo.write_settings(**arguments(*words, "--resume", "latest"), **secret)
    demo.up(*NODES)
    demo.ends(demo_master=0, demo_worker=0)
    assert max(steps(run)) == STEPS
    assert (run.final / "model.safetensors").is_file()
    assert set(demo.run(outputs=other).statuses()) == {1}
    assert demo.run(outputs=other).id == run.id


def test_a_suspended_rank_shows_as_unhealthy(project: Callable[..., Project]) -> None:
    demo = project(**arguments(*SHORT, "train.max_steps=100000", "train.epochs=100000"))
    demo.up(*NODES)
    demo.until_step(2)
    worker = demo.container("demo-worker")
    health = ["docker", "exec", "-e", "TATARA_HEALTH_LIMIT=3", worker]
    health += ["python", "-m", "workloads.launch.health"]
    well = subprocess.run(health, capture_output=True, text=True)
    assert (well.returncode, well.stdout) == (0, "1 ranks, all with a heartbeat\n")
    demo.kill_rank("demo-worker", 1, "STOP")
    demo.until(lambda: subprocess.run(health, capture_output=True).returncode == 1, "complaint", 30)
    ill = subprocess.run(health, capture_output=True, text=True)
    assert ill.stdout.startswith("rank 1 (pid ") and "no heartbeat for" in ill.stdout
