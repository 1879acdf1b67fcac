"""Long runs that are read in parts, dead runs, and what a first look may say of both."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.monitor.html import page
from workloads.monitor.reading import find, follow, record, run_reader
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.clock import Now
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.text import frame

pytestmark = pytest.mark.unit
STEPS = 8_000
LIMIT = 1 << 19


def lines(path: Path, row: Callable[[int], dict[str, object]], first: int, last: int) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row(step)) + "\n" for step in range(first, last + 1))


def training(step: int) -> dict[str, object]:
    facts = {"grad_norm": 1.5, "learning_rate": 1e-4, "seconds_per_step": 0.5, "batches": step}
    return {"step": step, "epoch": step / STEPS, "loss": 8 - 7 * step / STEPS, **facts}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a megabyte are long."""
    monkeypatch.setattr(follow, "LIMIT", LIMIT)


@pytest.fixture
def long(tmp_path: Path) -> Written:
    """A finished run that takes several readings."""
    written = Written(tmp_path).begun(max_steps=STEPS)
    lines(written.run.metrics, training, 1, STEPS)
    lines(
        written.run.evaluations, lambda step: {"step": step * 1000, "eval_loss": 9 - step / 9}, 1, 9
    )
    assert written.run.metrics.stat().st_size > 1.5 * LIMIT
    written.run.event("finished", code=0)
    return written


def test_o_a6_a_half_read_run_has_its_newest_values(long: Written) -> None:
    reader = RunReader(long.run)
    first = reader.read()
    assert first.reading is not None and 0.3 < first.reading < 0.8
    assert (first.phase, first.step, first.loss) == ("finished", STEPS, 1.0)
    assert first.held_out == pytest.approx(8.0)
    whole = reader.read_all()
    assert whole.reading is None
    assert (whole.step, whole.loss, whole.held_out) == (first.step, first.loss, first.held_out)
    assert whole.curves["loss"].rows == STEPS


def test_o_a6_every_view_says_that_it_is_reading(long: Written) -> None:
    snapshot = RunReader(long.run).read()
    share = f"{snapshot.reading:.0%}"
    assert f"Reading {share}" in page.warnings(snapshot)
    assert f"reading {share}" in frame.numbers(snapshot, 100).plain
    assert f"reading {share}" in frame.curve_title(snapshot)
    assert f"step <b>{STEPS:,}</b>" in page.heading(snapshot)


def test_o_a6_a_run_that_grows_while_it_is_read(long: Written) -> None:
    reader = RunReader(long.run)
    reader.read()
    lines(long.run.metrics, lambda step: {"step": step, "loss": 0.25}, STEPS + 1, STEPS + 1)
    assert reader.read().loss == 0.25
    assert reader.read_all().loss == 0.25


def test_o_a6_a_long_file_of_evaluations(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([3.0])
    row = {"note": "x" * 80}
    lines(
        written.run.evaluations,
        lambda at: {"step": at, "eval_loss": 9 - at / 9000, **row},
        1,
        9_000,
    )
    snapshot = RunReader(written.run).read()
    assert snapshot.reading is not None
    assert (snapshot.loss, snapshot.held_out) == (3.0, pytest.approx(9 - 9_000 / 9000))


def test_o_a6_a_long_file_of_events(tmp_path: Path) -> None:
    """It was stopped and started again long ago: neither is how it stands."""
    written = Written(tmp_path).begun().losses([3.0])
    written.run.event("stopped", code=3)
    written.begun()
    event = {"event": "checkpoint", "time": time.time(), "monotonic": 1.0, "path": "x" * 200}
    lines(written.run.events, lambda step: {**event, "step": step}, 1, 4_000)
    written.run.event("finished", code=0)
    reader, listed = RunReader(written.run), find.RunList()
    assert (reader.read().phase, reader.read_all().phase) == ("finished", "finished")
    assert listed.read([written.run])[0].reading is not None
    while listed.read([written.run])[0].reading is not None:
        pass
    assert listed.read([written.run])[0].counts["checkpoint"] == 4_000


def test_o_a6_a_replaced_file_is_not_shown_half(long: Written) -> None:
    reader = RunReader(long.run)
    reader.read_all()
    other = long.run.evaluations.with_name("new")
    other.write_text('{"step": 1, "eval_loss": 5.0}\n')
    os.replace(other, long.run.evaluations)
    snapshot = reader.read()
    assert snapshot.reading is not None and (snapshot.loss, snapshot.held_out) == (1.0, 5.0)
    assert reader.read_all().curves["loss"].rows == STEPS


def test_o_d4_curves_of_a_long_run_cost_a_moment(
    long: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the standard library's reading of the same rows."""
    monkeypatch.setattr(follow, "LIMIT", 4 << 20)

    def plain() -> object:
        return [json.loads(line) for line in long.run.metrics.read_text().splitlines()]

    def cost(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    ratios = [cost(RunReader(long.run).read_all) / cost(plain) for _ in range(3)]
    assert min(ratios) < 4


def test_a_closer_look_has_every_row(long: Written) -> None:
    reader = RunReader(long.run)
    coarse = reader.read_all().curves["loss"]
    assert all(point.count > 1 for point in coarse)
    closer = reader.window(4000, 4200)["loss"]
    assert [point.step for point in closer] == list(range(4000, 4201))
    assert all(point.count == 1 for point in closer)
    assert next(iter(closer)).mean == training(4000)["loss"]


def test_a_closer_look_knows_restarts_and_rows_that_came_one_by_one(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([9.0] * 50)
    reader = RunReader(written.run)
    reader.read()
    written.losses([1.0] * 30, first=41)
    for step in range(71, 90):
        written.step(step, 2.0)
        reader.read()
    closer = reader.window(35, 80)["loss"]
    assert [point.mean for point in closer] == [9.0] * 6 + [1.0] * 30 + [2.0] * 10


def test_too_much_is_not_read_again(long: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_WINDOW", 1 << 18)
    reader = RunReader(long.run)
    reader.read_all()
    assert reader.window(0, STEPS) == {} and reader.window(10, 20)


def test_steps_that_are_no_whole_numbers_are_borne(tmp_path: Path) -> None:
    written = Written(tmp_path).begun()
    rows = ['{"step": 1.0, "loss": 4}', '{"step": true, "loss": 5}', '{"step": 2, "loss": true}']
    rows += ['{"step": -3, "loss": 1}', '{"step": 1e400, "loss": 1}', '{"step": 3, "loss": 1e400}']
    rows += ['{"step": 4, "loss": "nan", "x": [1]}', '{"step": 5, "loss": 3, "loss2": null}']
    written.run.metrics.write_text("\n".join(rows) + "\n")
    snapshot = RunReader(written.run).read()
    assert [(point.step, point.mean) for point in snapshot.curves["loss"]] == [(1, 4.0), (5, 3.0)]
    assert snapshot.broken == (3, 4)


def test_a_snapshot_never_changes(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([4.0, 3.0])
    reader = RunReader(written.run)
    before = reader.read()
    written.losses([2.0], first=3)
    assert reader.read().curves["loss"].last == 2.0
    assert (before.curves["loss"].last, len(before.curves["loss"])) == (3.0, 2)


def aged(written: Written, seconds: float) -> None:
    for path in written.run.path.rglob("*"):
        when = time.time() - seconds
        os.utime(path, (when, when))


@pytest.mark.parametrize("heartbeats", [0, 2])
def test_o_n1_a_dead_run_of_another_machine_is_lost_at_the_first_look(
    tmp_path: Path, heartbeats: int
) -> None:
    written = Written(tmp_path).begun().losses([4.0])
    manifest = json.loads((written.run.path / "manifest.json").read_text())
    (written.run.path / "manifest.json").write_text(json.dumps({**manifest, "hosts": ["far"]}))
    text = written.run.events.read_text().replace('"monotonic": ', '"monotonic": 9')
    written.run.events.write_text(text)
    for rank in range(heartbeats):
        written.beat(rank, host="far", monotonic=1e9)
    aged(written, 2 * 86_400)
    snapshot = RunReader(written.run).read()
    assert (snapshot.phase, snapshot.active) == ("lost", False)
    assert find.RunList().read([written.run])[0].phase == "lost"
    assert any("no sign of life" in alert.text for alert in alerts(snapshot))
    alive = Written(tmp_path, "20250101-000000-0000").begun()
    alive.beat(0)
    assert find.newest_active(tmp_path).id == alive.run.id


def test_o_n1_a_run_before_the_machine_was_started_again_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its monotonic times are those of another start, and look like a moment ago."""
    written = Written(tmp_path).begun().losses([4.0])
    written.beat(0)
    aged(written, 7200)
    now = Now()
    monkeypatch.setattr(run_reader, "Now", lambda: replace(now, booted=now.wall - 60))
    assert RunReader(written.run).read().phase == "lost"
    monkeypatch.setattr(run_reader, "Now", lambda: replace(now, booted=now.wall - 10_000))
    assert RunReader(written.run).read().phase == "training"


def test_o_n1_a_lost_run_comes_back_when_it_beats(tmp_path: Path) -> None:
    written = Written(tmp_path).begun()
    far = {"host": "far", "monotonic": 1e9}
    written.beat(0, ago=500, **far)
    text = written.run.events.read_text().replace('"monotonic": ', '"monotonic": 9')
    written.run.events.write_text(text)
    aged(written, 500)
    reader = RunReader(written.run)
    assert reader.read().phase == "lost"
    written.beat(0, ago=500, beat=10, **far)
    assert reader.read().phase == "training"


def test_o_n2_when_it_started_is_known_after_many_events(tmp_path: Path) -> None:
    written = Written(tmp_path).begun()
    for step in range(300):
        written.run.event("checkpoint", step=step)
    written.run.event("finished", code=0)
    (snapshot,) = find.RunList().read([written.run])
    assert len(snapshot.events) < 300
    assert snapshot.started == pytest.approx(time.time(), abs=60)
    assert snapshot.elapsed is not None


def test_o_a14c_a_newer_format_is_named(tmp_path: Path) -> None:
    written = Written(tmp_path).begun()
    path = written.run.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    snapshot = RunReader(written.run).read()
    (alert,) = [alert for alert in alerts(snapshot) if "format" in alert.text]
    assert "of format 99, newer than this tatara reads (1)" in alert.text
    assert "update tatara" in alert.text and alert.text in page.warnings(snapshot)


@pytest.mark.parametrize("dump", ["[1, 2]", '"text"', "7", '{"config": [1]}', "{"])
def test_o_a14c_a_config_that_is_no_object_ends_nothing(tmp_path: Path, dump: str) -> None:
    written = Written(tmp_path).begun().losses([4.0])
    (written.run.path / "config.json").write_text(dump)
    snapshot = RunReader(written.run).read()
    assert snapshot.loss == 4.0
    assert any("config.json cannot be read" in alert.text for alert in alerts(snapshot))
