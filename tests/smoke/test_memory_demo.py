"""`make demo-memory`: short, killed on the way, and in full, by its claim."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.smoke.test_reach_train import train, verdict
from tests.support.processes import ROOT, losses, state
from workloads.run import Run
from workloads.vla.reach.demonstrations import generate
from workloads.vla.reach.judge import TRAINED
from workloads.vla.reach.recall import CONTROLS, OTHER_CUE

pytestmark = pytest.mark.smoke
PROFILE = "profiles/demo-memory.yaml"
SHORT = (
    "train.max_steps=2",
    "train.per_device_batch_size=2",
    "train.global_batch_size=2",
    "evaluation.before=false",
    "evaluation.scenes=3",
    "tracking.tensorboard=false",
)


def demo(outputs: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TATARA_OUTPUTS": str(outputs)}
    env["TATARA_CACHE"] = str(outputs / "cache")
    command = [sys.executable, "-m", "workloads.vla.demo", f"data.source={data}", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def runs(outputs: Path) -> tuple[Run, Run]:
    """With a memory and without."""
    (own,), (alone,) = (outputs.glob(f"{name}/*") for name in ("demo-memory", "demo-memory-none"))
    return Run(own), Run(alone)


def test_both_trainings_a_table_and_nothing_twice(tmp_path: Path) -> None:
    data = tmp_path / "recall"
    generate(data, 12, 0, lambda done, total: None, "recall")
    done = demo(tmp_path / "out", data, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    own, alone = runs(tmp_path / "out")
    assert alone.config().action_head.history == "none"
    for run in (own, alone):
        found = verdict(run, "recall")
        assert list(found["scores"]) == [TRAINED, *CONTROLS] and found["scenes"] == 3
        assert (run.evaluation / "recall.png").is_file()
    lines = {line[:42].strip(): line[42:].strip() for line in done.stdout.splitlines()}
    for name, score in verdict(own, "recall")["scores"].items():
        assert lines[f"with a memory, {name}"] == f"{score['success']:.0%}"
    without = verdict(alone, "recall")["scores"][TRAINED]["success"]
    assert lines["without a memory"] == f"{without:.0%}"
    again = demo(tmp_path / "out", data, "--resume", *SHORT)
    assert again.returncode == 0 and again.stdout.count("done before") == 2


@pytest.mark.slow
def test_killed_and_resumed_it_learns_the_same(tmp_path: Path) -> None:
    data = tmp_path / "recall"
    generate(data, 30, 0, lambda done, total: None, "recall")
    words = (*SHORT, "train.max_steps=40", "checkpoints.every_steps=10")
    whole = train(tmp_path / "whole", data, *words, profile=PROFILE).end().run
    part = train(tmp_path / "part", data, *words, profile=PROFILE, fault="hang:15:0")
    part.until_step(14)
    part.signal(signal.SIGKILL)
    part.end(expected=128 + signal.SIGKILL)
    resumed = train(tmp_path / "part", data, *words, resume=True, profile=PROFILE).end().run
    assert resumed.path == part.run.path
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 40
    assert state(resumed) == state(whole)
    assert verdict(resumed, "recall") == verdict(whole, "recall")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_in_full_only_who_remembers_the_cue_reaches_the_goal(tmp_path: Path) -> None:
    data = tmp_path / "recall"
    generate(data, 1500, 0, lambda done, total: None, "recall")
    done = demo(tmp_path / "out", data)
    assert done.returncode == 0, done.stdout + done.stderr
    own, alone = (verdict(run, "recall")["scores"] for run in runs(tmp_path / "out"))
    assert own[TRAINED]["success"] >= 0.8
    assert own[OTHER_CUE]["success"] < 0.1
    assert alone[TRAINED]["success"] < 0.3
