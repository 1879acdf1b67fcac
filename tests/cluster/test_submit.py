"""`tatara submit slurm` on a real Slurm: to the end, over a requeue, and stopped by somebody."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.test_slurm import Job, cluster, slurm
from tests.support.processes import ROOT, SHORT, Training, events, losses, state

__all__ = ["cluster"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Submitted(Job):
    """`tatara submit slurm demo` with the short demo's settings."""

    def __init__(self, outputs: Path, *settings: str) -> None:
        self.outputs = outputs
        env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
        env["MASTER_ADDR"] = "127.0.0.1"  # the names of this cluster's nodes lead nowhere
        words = [sys.executable, "-m", "workloads.cli", "submit", "slurm", "demo", *SHORT]
        words += [*settings, "parallel.nodes=2", "--cpus=1", "--time=20"]
        words += [f"--option=--output={outputs}/console.log"]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        (self.id,) = re.findall(r"Submitted batch job (\d+)", done.stdout)

    def fact(self, name: str) -> str:
        return re.findall(rf"{name}=(\S+)", slurm("scontrol", "show", "job", self.id))[0]

    def until_ended(self) -> None:
        ends = ("COMPLETED", "FAILED", "CANCELLED")
        self.until(lambda: self.fact("JobState") in ends, "end of the job")

    def signal_script(self, name: str) -> None:
        slurm("scancel", f"--signal={name}", "--batch", self.id)


def test_a_job_that_its_limit_ends_is_requeued_and_equals_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    """USR1 to the script is what --signal=B:USR1@… sends before the limit."""
    steps = "train.max_steps=80"  # more than it does before the signal has gone its way
    job = Submitted(tmp_path / "job", steps)
    job.until_step(2)
    job.signal_script("USR1")
    whole = Training(tmp_path / "whole", [steps]).end()  # while Slurm lets it wait
    job.until_ended()
    assert (job.fact("JobState"), job.fact("ExitCode"), job.fact("Restarts")) == (
        "COMPLETED",
        "0:0",
        "1",
    ), (job.outputs / "console.log").read_text()
    (stopped,) = events(job.run, "stopped")
    assert stopped["code"] == 3
    assert losses(job.run) == losses(whole.run)
    assert state(job.run) == state(whole.run)


def test_a_job_that_somebody_stops_is_not_requeued(tmp_path: Path) -> None:
    job = Submitted(tmp_path / "job", "train.max_steps=100000", "train.epochs=100000")
    job.until_step(2)
    job.signal_script("TERM")
    job.until_ended()
    assert (job.fact("JobState"), job.fact("ExitCode"), job.fact("Restarts")) == (
        "FAILED",
        "3:0",
        "0",
    )
    assert "saved" in events(job.run, "stopped")[0]["reason"]
