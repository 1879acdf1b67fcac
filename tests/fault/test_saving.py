"""Saving under bad conditions: a full disk, a kill in the middle, another number of ranks."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ONE_RANK, Training, Trainings, events
from workloads.run import verify_checkpoint
from workloads.run.integrity import sealed

pytestmark = pytest.mark.fault


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so that filling it hurts nobody else."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1200m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_older_checkpoint_and_fails_at_the_end(
    small_disk: Path, begin: Trainings
) -> None:
    filler = small_disk / "filler"
    training = begin(small_disk, [*ONE_RANK, "train.max_steps=400", "checkpoints.every_steps=8"])
    training.until_event("checkpoint")
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - 200_000)
    training.until_event("checkpoint failed")
    kept = sealed(training.run.checkpoints)
    assert kept and verify_checkpoint(kept[-1]) == []
    assert not list((training.run.checkpoints / ".staging").iterdir())
    filler.unlink()
    before = len(events(training.run, "checkpoint"))
    training.until(lambda: len(events(training.run, "checkpoint")) > before, "a save that works")
    training.signal(signal.SIGTERM)
    training.end(expected=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "delay"),
    [*(("llm", delay) for delay in range(5)), ("policy", 0)],
    indirect=["begin"],
)
def test_a_kill_while_saving_never_leaves_a_half_checkpoint(
    tmp_path: Path, begin: Trainings, delay: int
) -> None:
    words = [*ONE_RANK, "train.max_steps=100000", "train.epochs=10000", "checkpoints.every_steps=1"]
    training = begin(tmp_path, [*words, "parallel.restarts=0"])
    training.until_step(3 + delay)
    training.signal_rank(0, signal.SIGKILL)
    training.end(expected=75)
    for path in sealed(training.run.checkpoints):
        assert verify_checkpoint(path) == []
    newest = sealed(training.run.checkpoints)[-1]
    again = begin(tmp_path, [*words, "train.max_steps=20"], resume=True).end()
    assert f"going on from {newest.name}" in again.console


@pytest.mark.slow
def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    Training(tmp_path, ["train.max_steps=8"]).end()
    again = Training(tmp_path, [*ONE_RANK, "parallel.strategy=fsdp2"], resume=True).end(expected=2)
    assert "was written with world_size 2, " in again.console
    assert ", found world_size 1, " in again.console
    assert "another global batch; set train.global_batch_size=" in again.console
    assert "Traceback" not in again.console
