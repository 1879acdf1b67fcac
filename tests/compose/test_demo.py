"""`docker compose --profile demo up`: two containers train as one job, for the caller."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compose.project import Project, arguments, build_there, copy_checkout, docker
from tests.support.processes import events, steps

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

QUICK = (
    "train.epochs=50",
    "train.max_steps=8",
    "checkpoints.every_steps=4",
    "evaluation.every_steps=8",
    "evaluation.rows=4",
    "evaluation.max_new_tokens=8",
)


def test_two_containers_train_evaluate_and_export(project: Callable[..., Project]) -> None:
    demo = project(**arguments(*QUICK))
    demo.up("demo-master", "demo-worker")
    demo.ends(demo_master=0, demo_worker=0)
    run = demo.run()
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["hosts"] == ["demo-master", "demo-worker"]
    assert manifest["image"].startswith("tatara/demo")
    assert steps(run) == list(range(1, 9))
    assert run.statuses()[1]["host"] == "demo-worker"
    assert [event["when"] for event in events(run, "evaluated")] == ["before", "after"]
    assert (run.final / "model.safetensors").stat().st_size > 100_000
    assert "held-out loss" in demo.logs("demo-master")
    _belongs_to_caller(demo)
    _publishes_nothing(demo)


def _belongs_to_caller(demo: Project) -> None:
    for folder in ("outputs", "cache"):
        files = list((demo.folder / folder).rglob("*"))
        owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in files}
        assert owners == {(demo.uid, demo.gid)}, folder
    private = [path for path in demo.outputs.rglob("*") if not path.stat().st_mode & 0o400]
    assert private == []


def _publishes_nothing(demo: Project) -> None:
    for service in ("demo-master", "demo-worker"):
        facts = demo.inspect(service)
        assert facts["HostConfig"]["PortBindings"] in ({}, None)
        assert facts["HostConfig"]["Privileged"] is False
        assert facts["HostConfig"]["CapDrop"] == ["ALL"]
        assert facts["Config"]["User"] == f"{demo.uid}:{demo.gid}"


def test_the_board_listens_on_this_machine_alone(project: Callable[..., Project]) -> None:
    board = project(BOARD_PORT="0")
    board.up("board")
    ports = board.inspect("board")["NetworkSettings"]["Ports"]
    assert [binding["HostIp"] for binding in ports["6006/tcp"]] == ["127.0.0.1"]
    state = "{{.State.Health.Status}}"
    board.until(
        lambda: docker("inspect", "-f", state, board.container("board")).strip() == "healthy",
        "healthy board",
    )


def test_a_program_of_the_image_runs_as_it_is(project: Callable[..., Project]) -> None:
    demo = project()
    done = demo.compose("run", "--rm", "-T", "demo-master", "sh", "-c", "id -u; pwd; echo $HOME")
    uid, folder, home = done.stdout.split()
    assert (uid, folder, home) == (str(demo.uid), "/workspace", "/workspace/.cache/home")
    done = demo.compose("run", "--rm", "-T", "demo-master", "trian", check=False)
    assert done.returncode == 2 and "'trian' is neither a command" in done.stderr


def test_a_folder_of_somebody_else_is_named(project: Callable[..., Project]) -> None:
    demo = project(UID="4999", GID="4999", TATARA_DOTENV="/dev/null")
    done = demo.compose("run", "--rm", "-T", "demo-master", "check", "demo", check=False)
    assert done.returncode == 2
    assert f"found one of uid {demo.uid}" in done.stderr
    assert "run scripts/setup_environment.sh" in done.stderr


def test_the_image_is_small_and_holds_the_code_once(images: Callable[[str], None]) -> None:
    """O-I1: with the torch for CPUs; what a build of CUDA brings is counted elsewhere."""
    images("demo")
    name = "tatara/demo:local"
    if "cpu" not in docker(
        "run", "--rm", name, "python", "-c", "import torch; print(torch.__version__)"
    ):
        pytest.skip("NOT TESTED: this torch is one for CUDA")
    assert int(docker("image", "inspect", "-f", "{{.Size}}", name)) < 2.2e9
    layers = docker("history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", name)
    after = layers.splitlines()[
        : [("COPY /source" in row) for row in layers.splitlines()].index(True)
    ]
    assert all(row.startswith("0B") for row in after), after
    find = "find /opt/venv/lib -type d -name tests; find /workspace -name '*.py' -path '*/run/*'"
    found = docker("run", "--rm", name, "sh", "-c", find)
    assert "/site-packages/" not in found and "/workspace/workloads/run/directory.py" in found


def test_code_alone_rebuilds_in_seconds(images: Callable[[str], None], tmp_path: Path) -> None:
    images("demo")
    with (copy_checkout(tmp_path) / "workloads" / "entry.py").open("a") as file:
        file.write(f"\n# {time.time()}\n")
    start = time.monotonic()
    image = build_there(tmp_path)
    assert time.monotonic() - start < 10
    docker("rmi", image)
