"""The demo of the vla workload, made tiny: demonstrations, training, export, closed loop.

Some pictures are damaged, as on a disk that fails: training goes on without them.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import Training, events, losses, state
from tests.support.robot_data import rewrite
from workloads.data.robot import images
from workloads.run import Run
from workloads.vla.reach.demonstrations import generate
from workloads.vla.reach.judge import CONTROLS, TRAINED

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).resolve().parent.parent.parent
PROFILE = "profiles/demo-vla.yaml"
WORDS = (
    "train.max_steps=9",
    "train.per_device_batch_size=8",
    "train.log_every=1",
    "checkpoints.every_steps=3",
    "evaluation.every_steps=null",
    "evaluation.scenes=6",
    "tracking.tensorboard=false",
)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "reach"
    generate(folder, 30, 0, lambda done, total: None)
    # Begins as a picture does, so that opening the data does not find it.
    cut = images.encode_jpeg(np.full((96, 96, 3), 90, np.uint8), 95)[:-40]
    for number in (3, 9, 17, 26):
        file = folder / f"episode_{number:04d}" / "episode_data.tfrecord"
        rewrite(file, {1: {"observation/image_primary": cut}})
    return folder


def train(folder: Path, data: Path, *words: str, profile: str = PROFILE, **more: Any) -> Training:
    """`tatara train PROFILE` for a few steps, watched as the harness does."""
    cache = {"TATARA_CACHE": str(folder / "cache")}
    settings = [f"data.source={data}", *WORDS, *words]
    return Training(folder, settings, cache, profile=profile, defaults=(), **more)


def verdict(run: Run, task: str = "reach") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.evaluation / f"{task}.json").read_text())
    return found


def test_it_ends_with_success_before_and_after_and_a_picture(
    tmp_path: Path, demonstrations: Path
) -> None:
    done = train(tmp_path, demonstrations).end()
    found = verdict(done.run)
    assert list(found["scores"]) == [TRAINED, *CONTROLS]
    assert found["scenes"] == len(found["won"]) == 6
    assert (done.run.evaluation / "reach.png").is_file()
    assert "left out, and another step taken for it" in done.console
    assert "reached of 6 scenes" in done.console and "best control" in done.console
    assert events(done.run, "evaluated")[-1]["scores"] == found["scores"]
    # Asked again from outside, the exported policy does the same, to the last digit.
    command = [sys.executable, "-m", "workloads.cli", "eval", "reach", str(done.run.path)]
    again = subprocess.run(
        [*command, "--scenes", "6", "--out", str(tmp_path / "again")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shuffled instruction" in again.stdout
    assert json.loads((tmp_path / "again" / "reach.json").read_text()) == found


@pytest.mark.slow
def test_killed_and_resumed_has_the_same_losses_and_the_same_success(
    tmp_path: Path, demonstrations: Path
) -> None:
    words = ("train.max_steps=40", "checkpoints.every_steps=10")
    whole = train(tmp_path / "whole", demonstrations, *words).end().run
    part = train(tmp_path / "part", demonstrations, *words, fault="hang:15:0")
    part.until_step(14)
    part.signal(signal.SIGKILL)
    part.end(expected=128 + signal.SIGKILL)
    resumed = train(tmp_path / "part", demonstrations, *words, resume=True).end().run
    assert resumed.path == part.run.path
    assert not (part.run.checkpoints / "checkpoint-14").exists()
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 40
    assert state(resumed) == state(whole)
    assert verdict(resumed) == verdict(whole)
