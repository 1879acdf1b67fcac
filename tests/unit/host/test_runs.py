"""O-A5: what a stop says where there is no run, no checkpoint, or a whole one."""

import json
import os
import time
from pathlib import Path

import pytest

from workloads.host.runs import clock, has_first_step, how_they_stopped, newest, newest_checkpoint

pytestmark = pytest.mark.unit


def made(outputs: Path, name: str, event: str = "training", when: float = 1000) -> Path:
    run = outputs / name
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text(json.dumps({"event": event}) + "\n")
    os.utime(run / "events.jsonl", (when, when))
    return run


def seal(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text("{}")
    return folder


def test_the_clock_is_that_of_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server with a clock of its own: a run's end would be older than the stop before it."""
    run = made(tmp_path, "demo/a")
    (run / "events.jsonl").touch()
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert abs(clock(tmp_path) - (run / "events.jsonl").stat().st_mtime) < 60
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert clock(tmp_path / "none") == 5.0


def test_nothing_to_save(tmp_path: Path) -> None:
    nothing = ["stopped before there was anything to save"]
    assert how_they_stopped(tmp_path / "none", "demo") == nothing
    assert how_they_stopped(tmp_path, "") == nothing
    run = made(tmp_path, "demo/a")
    assert how_they_stopped(tmp_path, "demo") == nothing
    (run / "checkpoints" / "checkpoint-4").mkdir(parents=True)  # cut while it was written
    assert how_they_stopped(tmp_path, "demo") == nothing
    (run / "events.jsonl").write_text("")
    assert how_they_stopped(tmp_path, "demo") == nothing


def test_a_checkpoint_and_the_command_that_goes_on(tmp_path: Path) -> None:
    run = made(tmp_path, "demo/a")
    seal(run, 8)
    saved = seal(run, 16)
    made(tmp_path, "vla/b", when=2000)
    assert newest_checkpoint(run) == saved
    assert how_they_stopped(tmp_path, "demo") == [
        f"stopped; newest checkpoint: {saved}",
        "go on with: scripts/start_training.sh demo --resume a",
    ]
    made(tmp_path, "demo/c", "finished", when=3000)
    assert how_they_stopped(tmp_path, "demo")[0].startswith("finished before the stop came")


def test_a_stop_before_there_was_a_run_is_not_told_of_an_older_one(tmp_path: Path) -> None:
    """O-A5"""
    seal(made(tmp_path, "demo/a", when=1000), 8)
    assert how_they_stopped(tmp_path, "demo", 1001) == ["stopped before there was anything to save"]
    assert how_they_stopped(tmp_path, "demo", 1000 - 1)[0].startswith("stopped; newest checkpoint")


def test_every_run_that_ended_is_told_under_its_own_name(tmp_path: Path) -> None:
    """A recipe, or a profile of one's own, has another name than the service that trains it."""
    before = made(tmp_path, "vla/old", "stopped", when=900)
    recipe = made(tmp_path, "vla-tiny/a", "stopped", when=1010)
    made(tmp_path, "demo/goes-on", "evaluated", when=1030)
    assert how_they_stopped(tmp_path, "vla", 1000) == ["stopped before there was anything to save"]
    saved, _ = seal(recipe, 4), seal(before, 4)
    failed = made(tmp_path, "mine/b", "failed", when=1020)
    assert how_they_stopped(tmp_path, "vla", 1000) == [
        f"stopped; newest checkpoint: {saved}",
        "go on with: scripts/start_training.sh vla-tiny --resume a",
        f"failed: None ({failed})",
    ]


def test_the_first_step_is_one_of_this_start(tmp_path: Path) -> None:
    run = made(tmp_path, "demo/a", when=1000)
    metrics = run / "metrics.jsonl"
    assert newest(tmp_path, "demo", 1500) is None and not has_first_step(run, 0)
    metrics.write_text('{"step": 1, "loss": 2.5}\n')
    os.utime(metrics, (1600, 1600))
    assert has_first_step(run, 1500) and not has_first_step(run, 1700)
    metrics.write_text('{"step": 1, "los')
    assert not has_first_step(run, 0)
