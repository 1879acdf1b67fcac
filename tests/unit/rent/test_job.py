"""The scripts that run over there, by a real bash, with a stand-in for the training."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until
from workloads.rent import cuda_step, job, probe
from workloads.rent.ledger import Ledger
from workloads.rent.remote import harmless

pytestmark = pytest.mark.unit


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    python = tmp_path / "a python"
    python.write_text('#!/bin/bash\necho "$@" >>calls\ncat "$HF_TOKEN_FILE" >>seen\n. ./training\n')
    python.chmod(0o755)
    run_id = f"test-{os.getpid()}-{tmp_path.name}"
    return Ledger(
        "tatara-demo",
        "ssh",
        "demo",
        run_id,
        "",
        "",
        "",
        folder=str(tmp_path / "the checkout"),
        python=str(python),
    )


def bash(script: str, stdin: str = "") -> str:
    done = subprocess.run(["bash", "-c", script], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def begin(ledger: Ledger, training: str, retries: int = 3) -> Path:
    """Start it as a lease does; the folder of the job."""
    bash(job.prepare(ledger))
    bash(job.keep_secret(ledger, "HF_TOKEN"), stdin="hf_secret")
    folder = Path(ledger.job_folder)
    folder.mkdir(parents=True)
    (folder / "runner").write_text(job.runner(ledger, retries, False))
    (Path(ledger.folder) / "training").write_text(training)
    bash(job.start(ledger, ("HF_TOKEN",)))
    return folder


def ended(folder: Path) -> int:
    until((folder / "exit").is_file)
    return int((folder / "exit").read_text())


def facts(ledger: Ledger) -> dict[str, Any]:
    return probe.look(Path(ledger.run_folder), Path(ledger.job_folder))


def test_a_training_leaves_its_code_and_no_secret(ledger: Ledger) -> None:
    folder = begin(ledger, "echo trained; exit 1")
    assert ended(folder) == 1 and (folder / "log").read_text() == "trained\n"
    checkout = Path(ledger.folder)
    assert (checkout / "seen").read_text() == "hf_secret"
    assert f"train .cache/rent/{ledger.run_id}/demo.yaml" in (checkout / "calls").read_text()
    assert not Path(f"/dev/shm/tatara-{ledger.run_id}").exists()
    assert "hf_secret" not in (folder / "runner").read_text()


def test_75_is_tried_again_within_its_budget(ledger: Ledger) -> None:
    folder = begin(ledger, "exit 75", retries=2)
    assert ended(folder) == 75
    assert len((Path(ledger.folder) / "calls").read_text().splitlines()) == 3


def test_a_stop_reaches_the_training_alone_and_is_not_tried_again(ledger: Ledger) -> None:
    folder = begin(ledger, 'trap "exit 75" TERM\ntouch ready\nwhile :; do sleep 0.05; done')
    until((Path(ledger.folder) / "ready").is_file)
    assert facts(ledger)["alive"] and facts(ledger)["code"] is None
    again = subprocess.run(["bash", "-c", job.prepare(ledger)], capture_output=True, text=True)
    assert again.returncode == 2 and "a training runs there already" in again.stderr
    bash(job.stop(ledger, "TERM"))
    assert ended(folder) == 75
    assert len((Path(ledger.folder) / "calls").read_text().splitlines()) == 1
    assert facts(ledger)["code"] == 75


def test_the_probe_reads_what_a_training_writes(ledger: Ledger) -> None:
    run = Path(ledger.run_folder)
    found = facts(ledger)
    assert (found["run"], found["alive"], found["sealed"]) == (False, False, [])
    for name, text in {
        "config.json": "{}",
        "status/0.json": json.dumps({"phase": "training", "progress": 7, "step": 3, "beat": 1}),
        "checkpoints/checkpoint-2/complete.json": "{}",
        "checkpoints/checkpoint-3/half": "",
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    found = facts(ledger)
    assert (found["run"], found["phase"], found["step"]) == (True, "training", 3)
    assert found["sealed"] == ["checkpoint-2"]
    # A heartbeat alone is no progress.
    status = {"phase": "training", "progress": 7, "step": 3, "beat": 99}
    (run / "status/0.json").write_text(json.dumps(status))
    assert facts(ledger)["progress"] == found["progress"]
    (run / "status/0.json").write_text(json.dumps({**status, "progress": 8}))
    assert facts(ledger)["progress"] != found["progress"]


def test_a_machine_without_cuda_says_so() -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    source = Path(cuda_step.__file__).read_text()
    words = ["python3", "-", "1"]
    done = subprocess.run(words, input=source, capture_output=True, text=True)
    assert done.returncode == 1 and "no CUDA driver" in done.stderr


class FakeCuda:
    """The driver's library with some GPUs: `broken` names the call that fails and its code."""

    def __init__(self, gpus: int, broken: tuple[str, int] = ("", 0), forgets: bool = False) -> None:
        self.gpus, self.broken, self.forgets = gpus, broken, forgets

    def __getattr__(self, name: str) -> Any:
        def call(*words: Any) -> int:
            if name == self.broken[0]:
                return self.broken[1]
            if name == "cuDeviceGetCount":
                words[0]._obj.value = self.gpus
            if name == "cuMemcpyDtoH_v2" and not self.forgets:
                words[0].raw = b"\x5a" * len(words[0].raw)
            return 0

        return call


@pytest.mark.parametrize(
    ("cuda", "told"),
    [
        (FakeCuda(2), ""),
        (FakeCuda(2, ("cuInit", 802)), "CUDA error 802"),
        (FakeCuda(1), "expected 2 GPUs that CUDA can use, found 1"),
        (FakeCuda(2, ("cuMemAlloc_v2", 2)), "GPU 0: CUDA error 2"),
        (FakeCuda(2, forgets=True), "GPU 0: its memory gave back other bytes than were written"),
    ],
    ids=["well", "no fabric", "too few", "full", "broken memory"],
)
def test_every_gpu_has_to_compute(
    cuda: FakeCuda, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cuda_step.ctypes, "CDLL", lambda name: asked.append(name) or cuda)
    assert cuda_step.fault(2) == told and asked == ["libcuda.so.1"]


def test_programs_get_no_secret() -> None:
    env = {"PATH": "/bin", "SSH_AUTH_SOCK": "/tmp/agent", "LAMBDA_API_KEY": "k", "MY_TOKEN": "t"}
    assert harmless(env) == {"PATH": "/bin", "SSH_AUTH_SOCK": "/tmp/agent"}
