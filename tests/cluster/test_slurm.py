"""A real Slurm with two nodes: scancel and the time limit leave a checkpoint and exit code 3."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, SHORT, events, steps
from workloads.run import Run, verify_checkpoint
from workloads.run.integrity import sealed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PATIENCE = 300.0
ENDLESS = ("train.max_steps=100000", "train.epochs=100000", "checkpoints.every_steps=100000")
# A task's shell has to outlive the SIGTERM that comes to it as well, to write the exit code down.
SCRIPT = """#!/bin/bash
export NNODES=$SLURM_JOB_NUM_NODES MASTER_ADDR=127.0.0.1 RUN_ID=slurm-$SLURM_JOB_ID
export MASTER_PORT=$((20000 + 2 * (SLURM_JOB_ID % 10000)))
trap : TERM
srun --kill-on-bad-exit=0 bash -c '
  trap : TERM
  NODE_RANK=$SLURM_NODEID "$@"
  echo $? >"$TATARA_OUTPUTS/exit-$SLURM_NODEID"
' _ {command} &
while ! wait $!; do kill -0 $! 2>/dev/null || break; done
"""


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


class Job:
    """`tatara train profiles/demo.yaml` on both nodes, until somebody ends it."""

    def __init__(self, outputs: Path, limit: str) -> None:
        self.outputs = outputs
        outputs.mkdir()
        command = f"{sys.executable} -m workloads.cli train profiles/demo.yaml "
        script = outputs / "job.sh"
        script.write_text(SCRIPT.replace("{command}", command + " ".join((*SHORT, *ENDLESS))))
        self.env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
        words = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
        words += [f"--time={limit}", f"--output={outputs}/console.log", f"--chdir={ROOT}"]
        done = subprocess.run(
            [*words, script], env=self.env, capture_output=True, text=True, check=True
        )
        self.id = done.stdout.strip()

    @property
    def run(self) -> Run:
        return Run(self.outputs / "demo" / f"slurm-{self.id}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                state = slurm("scontrol", "show", "job", self.id)
                console = (self.outputs / "console.log").read_text()[-3000:]
                raise AssertionError(f"no {what}\n{state}\n{console}")
            time.sleep(0.1)

    def until_step(self, step: int) -> None:
        self.until(lambda: any(reached >= step for reached in steps(self.run)), f"step {step}")

    def codes(self) -> list[str]:
        """The exit codes of both nodes, once they are there."""
        files = [self.outputs / f"exit-{node}" for node in range(2)]
        self.until(lambda: all(path.is_file() and path.read_text() for path in files), "exit codes")
        return [path.read_text().strip() for path in files]

    def check_saved(self) -> None:
        assert self.codes() == ["3", "3"], (self.outputs / "console.log").read_text()
        (checkpoint,) = sealed(self.run.checkpoints)
        assert verify_checkpoint(checkpoint) == []
        (stopped,) = events(self.run, "stopped")
        assert f"{checkpoint.name} saved" in stopped["reason"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    if shutil.which("sbatch") is None or len(slurm("sinfo", "-h", "-N", "-r").split("\n")) < 3:
        pytest.skip("no Slurm with two nodes answers")


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    jobs: list[Job] = []

    def submit(limit: str) -> Job:
        jobs.append(Job(tmp_path / f"outputs-{len(jobs)}", limit))
        return jobs[-1]

    yield submit
    for job in jobs:
        subprocess.run(["scancel", "--full", "--signal=KILL", job.id], capture_output=True)
        subprocess.run(["scancel", job.id], capture_output=True)


@pytest.mark.parametrize("attempt", range(3))
def test_a_cancelled_job_has_saved(submit: Callable[[str], Job], attempt: int) -> None:
    """O-S1: scancel signals every process of the job."""
    job = submit("10")
    job.until_step(1)
    time.sleep(random.Random(attempt).uniform(0, 3))  # the moment is what is tried
    slurm("scancel", job.id)
    job.check_saved()


def test_a_job_at_its_time_limit_has_saved(submit: Callable[[str], Job]) -> None:
    job = submit("1")
    job.until_step(1)
    job.check_saved()
