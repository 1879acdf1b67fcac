"""The services and images of the GPU profiles, themselves, on a machine without a GPU."""

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.compose.project import Project, arguments, docker
from tests.support.processes import events
from workloads.run.integrity import sealed

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

FILES = ("compose.yaml", "compose.cpu.yaml")
QUICK = (
    "train.epochs=50",
    "train.max_steps=4",
    "checkpoints.every_steps=2",
    "evaluation.every_steps=4",
    "evaluation.rows=4",
    "evaluation.max_new_tokens=8",
)


def test_llm_4090_trains_as_two_nodes_of_two_ranks(project: Callable[..., Project]) -> None:
    llm = project("llm-4090", FILES, **arguments(*QUICK))
    llm.up("llm-master", "llm-worker")
    llm.ends(llm_master=0, llm_worker=0)
    run = llm.run("llm-4090")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["hosts"] == ["llm-master", "llm-worker"]
    assert manifest["image"].startswith("tatara/llm-4090")
    assert {rank: one["host"] for rank, one in run.statuses().items()} == {
        0: "llm-master",
        1: "llm-master",
        2: "llm-worker",
        3: "llm-worker",
    }
    training = events(run, "training")[0]
    assert (training["world_size"], training["strategy"]) == (4, "fsdp2")
    assert [path.name for path in sealed(run.checkpoints)][-1] == "checkpoint-4"
    assert (run.final / "model.safetensors").is_file()
    master, worker = llm.inspect("llm-master"), llm.inspect("llm-worker")
    assert worker["HostConfig"]["IpcMode"] == f"container:{master['Id']}"


def test_a_gpu_service_without_a_gpu_is_refused_before_it_starts(
    project: Callable[..., Project],
) -> None:
    llm = project("llm-4090")
    runtimes = docker("info", "--format", "{{json .Runtimes}}")
    if "nvidia" in runtimes:
        pytest.skip("NOT TESTED: this engine has the NVIDIA runtime")
    done = llm.compose("up", "--detach", "llm-master", check=False)
    assert done.returncode != 0
    assert not (llm.outputs / "llm-4090").exists()


@pytest.mark.slow
def test_vla_finetune_runs_under_the_profile_of_vla(project: Callable[..., Project]) -> None:
    """The users' own words: `--profile vla run --rm vla_finetune COMMAND`."""
    vla = project("vla", FILES)
    files = [part for name in FILES for part in ("-f", name)]
    words = [
        "docker",
        "compose",
        "--progress",
        "quiet",
        *files,
        "-p",
        vla.name,
        "--env-file",
        str(vla.env_file),
    ]
    words += ["--profile", "vla", "run", "--rm", "-T", "vla_finetune"]
    done = subprocess.run(
        [
            *words,
            "bash",
            "-c",
            "python3 -c 'import workloads.vla, torch; print(torch.__version__)'",
        ],
        env=vla.env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.")
    helper = subprocess.run(
        [*words, "scripts/docker/vla_finetune.sh", "train-multi-gpu", "none"],
        env=vla.env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert helper.returncode == 2 and "expected the number of GPUs" in helper.stderr
