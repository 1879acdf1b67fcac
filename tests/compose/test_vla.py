"""The robot policy's service and image, themselves, without a GPU: train, look at data, serve."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.compose.project import ROOT, Project, arguments, docker
from tests.smoke.test_vla_train import unpack
from tests.support.calvin_cases import write_calvin
from tests.support.policy_heads import HEADS, answers_as_its_checkpoint
from tests.support.processes import events, losses, state
from workloads.launch.network import free_ports
from workloads.run.integrity import sealed
from workloads.vla.serve.client import PolicyClient

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

FILES = ("compose.yaml", "compose.cpu.yaml")
WORDS = (
    "train.max_steps=4",
    "train.per_device_batch_size=2",
    "checkpoints.every_steps=2",
    "evaluation.every_steps=4",
    "tracking.tensorboard=false",
)
PICTURE = ROOT / "tests/golden/openvla/image_processor/img_224x224.png"


def data_folder(folder: Path) -> Path:
    """What a user's data/ holds: the demo's files, and recordings of a CRANE-X7."""
    shutil.copytree(ROOT / "data" / "demo", folder / "demo")
    unpack(folder / "tfrecord_logs")
    return readable(folder)


def readable(folder: Path) -> Path:
    """For the containers' account, which is another one."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def guide(vla: Project, command: str) -> subprocess.CompletedProcess[str]:
    """The guide's own way in: `docker compose --profile vla run --rm vla_finetune bash -c "…"`."""
    words = ("--profile", "vla", "run", "--rm", "-T", "--no-deps", "vla_finetune")
    return vla.compose(*words, "bash", "-c", command, check=False)


def run_once(vla: Project, *words: str) -> subprocess.CompletedProcess[str]:
    """`docker compose --profile vla run --rm vla WORD…`."""
    return vla.compose("run", "--rm", "-T", "--no-deps", "vla", *words, check=False)


@pytest.mark.runs("tatara data inspect data/tfrecord_logs --output outputs/look")
def test_it_trains_looks_at_data_and_serves(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    port = free_ports()
    vla = project(
        "vla",
        FILES,
        TATARA_DATA=str(data_folder(tmp_path / "data")),
        TATARA_SERVE_PORT=str(port),
        **arguments(*WORDS),
    )
    looked = run_once(vla, "data", "inspect", "data/tfrecord_logs", "--output", "outputs/look")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "3 episodes" in looked.stdout
    vla.up("vla")
    vla.ends(vla=0)
    run = vla.run("vla-tiny")
    assert (run.final / "dataset_statistics.json").is_file() and events(run, "exported")
    written = [path for path in vla.outputs.rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(vla.uid, vla.gid)}

    vla.up("vla-serve")
    health = ["{{.State.Health.Status}}", vla.container("vla-serve")]
    vla.until(lambda: docker("inspect", "-f", *health).strip() == "healthy", "health")
    client = PolicyClient(f"http://127.0.0.1:{port}/act")
    picture = np.asarray(Image.open(PICTURE).convert("RGB"))
    answer = client.act("pick up the red cube", picture)
    assert np.asarray(answer).shape == (8,) and np.isfinite(answer).all()
    docker("stop", "--time", "60", vla.container("vla-serve"))
    vla.ends(vla_serve=0)


def test_the_commands_of_the_guide_as_they_are_written(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    """Section 7: the guide's file names and flags train and look at data, without a GPU."""
    vla = project("vla", FILES, TATARA_DATA=str(data_folder(tmp_path / "data")))
    few = " ".join(["--max_steps 2", "--batch_size 2", "checkpoints.every_steps=2"])
    looked = guide(vla, "python3 vla/crane_x7_dataset.py data/tfrecord_logs")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "tatara data inspect" in looked.stdout and "3 episodes" in looked.stdout
    shown = guide(vla, "cd vla && python3 finetune_config.py")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for command in (
        f"cd vla && python3 finetune.py --gradient_checkpointing {few}",
        f"cd vla && torchrun --nproc-per-node 2 finetune.py {few}",
    ):
        done = guide(vla, command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tatara train profiles/recipes/vla-tiny.yaml" in done.stdout
        run = vla.run("vla-tiny")
        assert (run.final / "dataset_statistics.json").is_file() and events(run, "exported")
    assert len(run.statuses()) == 2


@pytest.mark.parametrize(
    "head",
    ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in HEADS if name != "lstm")],
)
def test_a_policy_head_is_stopped_and_resumes_to_the_same_weights(
    project: Callable[..., Project], tmp_path: Path, head: str
) -> None:
    """A tiny Kosmos-2 with each head on CALVIN, by its recipe, sharded over two ranks (FSDP2)."""
    data = tmp_path / "data"
    shutil.copytree(ROOT / "data" / "demo", data / "demo")
    write_calvin(data / "calvin", spans=((0, 12), (8, 20), (28, 36)))
    readable(data)
    words = (
        "data.source=data/calvin",
        "data.window=4",
        "data.eval_share=0.3",
        "action_head.chunk=3",
        "action_head.hidden=16",
        "parallel.ranks_per_node=2",
        "parallel.strategy=fsdp2",
        "train.max_steps=40",
        "train.per_device_batch_size=2",
        "checkpoints.every_steps=100",
        "evaluation.every_steps=100",
        "tracking.tensorboard=false",
        *HEADS[head],
    )
    own = {"TATARA_DATA": str(data), "TATARA_PROFILE": "profiles/recipes/policy-tiny.yaml"}
    whole, part = (project("vla", FILES, **own, **arguments(*words)) for _ in range(2))
    part.up("vla")
    run = part.until_step(4, "policy-tiny")
    docker("stop", "--time", "120", part.container("vla"), timeout=180)
    part.ends(vla=3)
    stopped_at = events(run, "stop requested")[0]["step"]
    assert sealed(run.checkpoints)[-1].name == f"checkpoint-{stopped_at}" != "checkpoint-40"
    part.write_settings(**own, **arguments(*words, "--resume", "latest"))
    # Neither waits for the other: half of a start is waiting for files.
    whole.up("vla")
    part.up("vla")
    whole.ends(vla=0)
    part.ends(vla=0)
    straight = whole.run("policy-tiny")
    assert events(straight, "training")[0]["strategy"] == "fsdp2"
    assert part.run("policy-tiny").path == run.path
    assert losses(run) == losses(straight) and len(losses(run)) == 40
    assert state(run) == state(straight)
    assert answers_as_its_checkpoint(run)
