"""Which part of a curve is looked at: cursor, zoom, scale."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.monitor.reading.axes import axes_of
from workloads.monitor.reading.curve_view import LOSS, point_text
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.text import frame

pytestmark = pytest.mark.unit


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    written = Written(tmp_path).begun().losses([100 / step for step in range(1, 201)])
    return RunReader(written.run).read()


def test_the_cursor_has_the_exact_value(snapshot: Snapshot) -> None:
    view = LOSS.moved(snapshot, -1)
    assert view.cursor == 200
    view = view.moved(snapshot, -1).moved(snapshot, -20)
    assert view.cursor == 179
    assert frame.curve_title(snapshot, view) == "loss   step 179: 0.5587"
    assert view.moved(snapshot, -1000).cursor == 1
    assert view.moved(snapshot, 1000).cursor == 200
    text = frame.curve(snapshot, 60, 12, view).plain
    assert text.count("┊") >= 5


def test_a_point_of_several_rows_says_so(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([float(step % 2) for step in range(2000)])
    view = LOSS.moved(RunReader(written.run).read(), -1)
    selected = view.selected(RunReader(written.run).read())
    assert selected is not None and selected.count > 1
    assert point_text(selected) == f"steps {selected.first:,}-2,000: 0.5 (0 to 1)"


def test_zooming_in_and_out_again(snapshot: Snapshot) -> None:
    view = replace(LOSS, cursor=100).zoomed(snapshot, 0.5)
    points = view.points(snapshot)
    assert 95 <= len(points) <= 105 and points[0].step < 100 < points[-1].step
    closer = view.zoomed(snapshot, 0.5)
    assert 45 <= len(closer.points(snapshot)) <= 55
    assert closer.zoomed(snapshot, 2).zoomed(snapshot, 2).zoomed(snapshot, 2).steps is None
    least = closer
    for _ in range(20):
        least = least.zoomed(snapshot, 0.5)
    assert len(least.points(snapshot)) >= 4


def test_a_zoom_to_the_end_goes_on_with_the_run(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([1.0] * 100)
    reader = RunReader(written.run)
    view = LOSS.zoomed(reader.read(), 0.5)
    written.losses([2.0] * 10, first=101)
    assert view.points(reader.read())[-1].step == 110


def test_a_log_scale_gives_every_decade_the_same_room(snapshot: Snapshot) -> None:
    axes = axes_of([(1.0, 100.0), (2.0, 1.0)], log=True)
    assert axes.share((1.0, 10.0))[1] == pytest.approx(0.5)
    assert {1.0, 10.0, 100.0} <= set(axes.value_ticks(12))
    text = frame.curve(snapshot, 60, 14, replace(LOSS, log=True)).plain
    labels = [line.split()[0] for line in text.splitlines() if line[0] != " " or line.split()]
    assert {"100", "10", "1"} <= set(labels)


@pytest.mark.parametrize("values", [[0.0, -1.0], [0.0, 0.0], [-1.0, 5.0], [1.0, 1.0]])
def test_a_log_scale_of_what_has_no_logarithm(values: list[float]) -> None:
    points = [(float(at), value) for at, value in enumerate(values)]
    axes = axes_of(points, log=True)
    assert all(0 <= axes.share(point)[1] <= 1 for point in points)
