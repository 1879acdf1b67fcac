"""What a look at a run finds, and what it warns of."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tests.support.run_files import Written
from tests.support.waiting import until
from workloads import run as runs
from workloads.errors import UserError
from workloads.monitor.reading import find
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.flops import Flops, main
from workloads.monitor.reading.follow import read_object
from workloads.monitor.reading.hardware import GpuReading, Hardware
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot
from workloads.plan.cards import peak_flops
from workloads.plan.shapes import from_fields
from workloads.plan.speed import mfu_flops_per_token

pytestmark = pytest.mark.unit


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def look(written: Written) -> Snapshot:
    return RunReader(written.run).read()


def warned(written: Written) -> str:
    return "\n".join(alert.text for alert in alerts(look(written)))


def test_a_run_in_training(written: Written) -> None:
    written.begun().losses([4.0, 3.0, 2.0])
    written.run.eval_metric({"step": 3, "eval_loss": 2.2})
    for rank in (0, 1):
        written.beat(rank, step=3)
    now = look(written)
    assert (now.phase, now.active, now.step, now.steps) == ("training", True, 3, 100)
    assert (now.loss, now.held_out, now.learning_rate) == (2.0, 2.2, 1e-3)
    assert (now.speed, now.unit, now.seconds_per_step) == (1000.0, "tokens/s", 0.5)
    assert now.left == pytest.approx(97 * 0.5)
    assert now.elapsed is not None and 0 <= now.elapsed < 30
    assert (now.name, now.workload, now.world_size) == (f"demo/{written.run.id}", "llm", 2)
    assert alerts(now) == []


def test_evaluations_count_in_the_time_left_and_a_standstill_hardly(written: Written) -> None:
    written.begun().losses([4.0] * 8)
    written.beat(0, step=10)
    written.step(9, 4.0, seconds_per_step=2.5)
    assert look(written).left == pytest.approx(90 * (8 * 0.5 + 2.5) / 9)
    written.step(10, 4.0, seconds_per_step=9000)
    assert look(written).left == pytest.approx(90 * (8 * 0.5 + 2.5 + 5) / 10)


def test_looking_writes_nothing(written: Written) -> None:
    written.begun().losses([4.0, 3.0])
    written.beat(0)
    before = written.files()
    reader = RunReader(written.run)
    for _ in range(3):
        reader.read()
    find.RunList().read([written.run])
    assert written.files() == before


def test_a_look_goes_on_where_the_last_one_ended(written: Written) -> None:
    reader = RunReader(written.begun().run)
    assert reader.read().loss is None
    written.losses([4.0, 3.0])
    assert reader.read().loss == 3.0
    written.losses([2.0], first=3)
    now = reader.read()
    assert now.loss == 2.0 and now.curves["loss"].rows == 3


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_how_a_run_ended(written: Written, end: str) -> None:
    written.begun().run.event(end, code=1, reason="because of it")
    now = look(written)
    assert (now.phase, now.active, now.left) == (end, False, None)
    assert ("because of it" in warned(written)) == (end == "failed")


def test_a_failed_rank_is_no_failed_run_while_it_may_restart(written: Written) -> None:
    written.begun().losses([4.0])
    written.beat(0, phase="failed", code=75, reason="lost contact")
    written.beat(1)
    now = look(written)
    assert (now.phase, now.active) == ("ending", True)
    assert "failed: lost contact" in warned(written)


def test_a_run_that_goes_on_after_a_stop_is_active(written: Written) -> None:
    written.begun().run.event("stopped", code=3, reason="")
    written.begun()
    written.beat(0)
    assert look(written).active


def test_a_run_that_meets_its_nodes_is_starting(written: Written) -> None:
    now = look(written)
    assert (now.phase, now.active, now.ranks) == ("starting", True, ())


def test_a_run_without_a_sign_of_life_is_lost(written: Written) -> None:
    written.begun()
    for path in (written.run.events, written.run.path / "config.json"):
        os.utime(path, (time.time() - 500,) * 2)
    text = written.run.events.read_text()
    written.run.events.write_text(text.replace('"monotonic": ', '"monotonic": -'))
    os.utime(written.run.events, (time.time() - 500,) * 2)
    written.beat(0, ago=400, pid=2**22 - 3)
    now = look(written)
    assert (now.phase, now.active) == ("lost", False)
    assert "no sign of life" in warned(written)


def test_the_last_row_of_a_repeated_step_counts(written: Written) -> None:
    written.begun().losses([4.0, 3.0, 2.0, 1.9])
    written.losses([2.5], first=3)
    curve = look(written).curves["loss"]
    assert [(point.step, point.mean) for point in curve] == [(1, 4.0), (2, 3.0), (3, 2.5)]


def test_silent_ranks_are_warned_of_by_name(written: Written) -> None:
    written.begun()
    written.beat(0)
    written.beat(1, ago=15, host="elsewhere-but-same-clock")
    text = warned(written)
    assert "rank 1 (node 1, elsewhere-but-same-clock" in text
    assert re.search(r"no heartbeat for 1\d s", text)


def test_ranks_whose_files_are_elsewhere_are_told_of(written: Written) -> None:
    written.begun(world_size=4)
    written.beat(0)
    assert "no heartbeat of rank 1, 2, 3 in this folder" in warned(written)
    runs.write_manifest(written.run, {"shared_outputs": False})
    assert "its node has an outputs folder of its own, look there" in warned(written)


def test_ranks_that_have_not_begun_yet_are_not_missed(written: Written) -> None:
    written.begun(world_size=4)
    written.beat(0, phase="starting", step=0)
    assert "no heartbeat of" not in warned(written)


def test_a_rising_loss_is_warned_of_and_a_noisy_one_is_not(written: Written) -> None:
    written.begun()
    written.beat(0)
    written.beat(1)
    falling = [4.0 - 0.02 * step + 0.3 * (-1) ** step for step in range(100)]
    written.losses(falling)
    assert "rises" not in warned(written)
    written.losses([2.0 + 0.1 * step for step in range(40)], first=101)
    assert "the loss rises: " in warned(written)


def test_a_held_out_loss_that_rises_twice_is_warned_of(written: Written) -> None:
    written.begun()
    for step, value in enumerate([3.0, 2.0, 2.1], start=1):
        written.run.eval_metric({"step": step, "eval_loss": value})
    assert "held-out" not in warned(written)
    written.run.eval_metric({"step": 4, "eval_loss": 2.4})
    assert "the held-out loss rises: 2.4, it was 2" in warned(written)


def test_numbers_that_are_not_finite_are_warned_of(written: Written) -> None:
    written.begun().losses([4.0, float("nan"), 3.0])
    assert "not finite at step 2" in warned(written)
    written.run.event("nonfinite", step=9, grad_norm=float("inf"))
    assert "1 step not applied, the last at step 9" in warned(written)
    assert len(look(written).curves["loss"]) == 2


def test_restarts_and_troubles_that_the_run_wrote_are_told(written: Written) -> None:
    written.begun().run.event("restarted", reason="lost node 1", restart=1, budget=3)
    written.run.event("started", attempt=1, hosts=["a"])
    written.run.event("tracker failed", tracker="wandb", reason="no route")
    written.run.event("oom", rank=1, planned=1, measured=2, gpu=3)
    text = warned(written)
    assert "restarted once: lost node 1" in text and look(written).restarts == 1
    assert "tracker" in text and "out of memory" in text
    assert alerts(look(written))[0].bad  # the worst comes first


def test_restarts_of_an_earlier_launch_do_not_count(written: Written) -> None:
    written.begun().run.event("restarted", reason="x", restart=1, budget=3)
    written.run.event("failed", code=75, reason="x")
    written.begun()
    assert look(written).restarts == 0


def test_a_disk_that_a_checkpoint_would_fill_is_warned_of(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    Usage = namedtuple("Usage", "total used free")
    written.begun().run.event("checkpoint", step=1, bytes=9 << 30, path="x")
    written.beat(0)
    free = {"bytes": 30 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free["bytes"]))
    assert "disk" not in warned(written)
    free["bytes"] = 10 << 30
    assert "nearly full: 10.0 GiB free; a checkpoint takes 9.0 GiB" in warned(written)


def test_damaged_and_missing_files_are_borne(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.begun().losses([1.0])
    with written.run.metrics.open("a") as file:
        file.write('garbage\n{"step": "x", "loss": 1}\n{"step": 2, "loss": {"a": 1}}\n')
    (written.run.path / "manifest.json").write_text("[")
    assert "1 line of the run's .jsonl files cannot be read" in warned(written)
    assert "not yours to read" not in warned(written)
    # Whoever runs this as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "events.jsonl")
    assert "events.jsonl: not yours to read" in warned(written)
    shutil.rmtree(written.run.path)
    assert look(written).step == 0


def test_memory_of_a_long_run_is_bounded(written: Written) -> None:
    written.begun()
    with written.run.metrics.open("w") as file:
        for step in range(30_000):
            file.write(f'{{"step": {step}, "loss": {1 + step % 7}}}\n')
    reader = RunReader(written.run)
    now = reader.read()
    while now.reading is not None:
        now = reader.read()
    assert now.curves["loss"].rows == 30_000 and len(now.curves["loss"]) <= 512
    assert len(now.recent) == 40


def test_names_of_metrics_are_bounded(written: Written) -> None:
    written.run.metric({"step": 1, **{f"m{number}": 1.0 for number in range(500)}})
    assert len(look(written).curves) == 64


def test_mfu_from_the_run_itself_or_from_its_tokens(written: Written) -> None:
    written.begun()
    written.step(1, 2.0, mfu=0.41)
    assert look(written).mfu == 0.41


def test_flops_of_a_token_and_their_share(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(written.run.path), "NVIDIA", "H200"])
    token, peak = (float(word) for word in capsys.readouterr().out.split())
    config = written.run.config()
    shape = from_fields(read_object(Path(config.model.name) / "config.json"))
    assert token == mfu_flops_per_token(shape, config.data.max_length, config.adapter)
    assert peak == peak_flops("NVIDIA H200")
    flops, gpus = Flops(written.run), [GpuReading(0, "NVIDIA H200"), GpuReading(1, "NVIDIA H200")]
    assert flops.utilisation(1e6, 2, gpus) is None and flops.pending
    until(lambda: not flops.pending)
    assert flops.utilisation(1e6, 2, gpus) == pytest.approx(1e6 * token / (2 * peak))


def test_gpus_of_several_kinds_have_no_common_peak(written: Written) -> None:
    flops = Flops(written.run)
    gpus = [GpuReading(0, "NVIDIA H200"), GpuReading(1, "NVIDIA A100")]
    assert flops.utilisation(1e6, 2, gpus) is None and not flops.pending


def test_this_machine_is_measured_from_any_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    hardware = Hardware()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:  # keeps a processor busy
        sum(range(1000))
    with ThreadPoolExecutor(1) as threads:
        here = threads.submit(hardware.read).result()
    assert here.cpu is not None and 0 < here.cpu <= 100
    assert 0 < here.memory_used < here.memory_total
    hardware.close()


def test_finding_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none; start one with `tatara train"):
        find.newest_active(tmp_path)
    for age, (profile, id) in enumerate([("demo", "b-1"), ("vla", "b-2"), ("demo", "a-3")]):
        one = Written(tmp_path, id, profile).begun()
        one.run.event("finished", code=0)
        os.utime(one.run.path / "config.json", (1e9 - age,) * 2)
    assert [run.id for run in find.runs(tmp_path)] == ["b-1", "b-2", "a-3"]
    assert find.locate(tmp_path, "latest").id == find.newest_active(tmp_path).id == "b-1"
    assert find.locate(tmp_path, "vla/b-2").id == find.locate(tmp_path, "vla").id == "b-2"
    assert find.locate(tmp_path, "a").id == "a-3"
    assert find.locate(tmp_path, str(tmp_path / "demo" / "a-3")).id == "a-3"
    with pytest.raises(UserError, match="found 2 runs of that name; there are: demo/b-1, vla/b-2"):
        find.locate(tmp_path, "b")
    with pytest.raises(UserError, match="no run 'zzz'"):
        find.locate(tmp_path, "zzz")
    going = Written(tmp_path, "old", "demo").begun()
    os.utime(going.run.path / "config.json", (5e8,) * 2)
    assert find.newest_active(tmp_path).id == "old"


def test_a_list_reads_a_long_run_by_its_end(tmp_path: Path) -> None:
    written = Written(tmp_path).begun(max_steps=50_000)
    with written.run.metrics.open("w") as file:
        file.writelines(f'{{"step": {step}, "loss": 2.5}}\n' for step in range(40_000))
    written.beat(0, step=39_999)
    listed = find.RunList()
    now = listed.read([written.run])[0]
    assert (now.step, now.steps, now.loss, now.active) == (39_999, 50_000, 2.5, True)
    assert now.curves["loss"].rows < 4000
    written.run.event("finished", code=0)
    assert listed.read([written.run])[0].phase == "finished"
    assert listed.read([written.run])[0] is listed.read([written.run])[0]  # not read again


def test_no_training_library_and_no_schema_is_loaded() -> None:
    code = """
import sys
from workloads.monitor.html import evaluations, report, web
from workloads.monitor.text import live, print_once
from workloads.commands import monitor, report
print([name for name in ("torch", "transformers", "numpy", "pydantic") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
