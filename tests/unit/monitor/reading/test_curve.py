"""Curves of any length in bounded memory, and how they are drawn in characters."""

import math

import pytest

from workloads.monitor.numbers import byte_text, clean, count_text, number_text, span_text, ticks
from workloads.monitor.reading.curve import Curve, course, smooth
from workloads.monitor.text.plot import plot, spark

pytestmark = pytest.mark.unit


def filled(values: list[float], capacity: int = 64) -> Curve:
    curve = Curve(capacity)
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    return curve


def test_a_short_curve_keeps_every_row() -> None:
    values = [3.0, 2.0, 2.5]
    points = list(filled(values))
    assert [(point.step, point.mean) for point in points] == list(enumerate(values, start=1))


def test_a_long_curve_keeps_its_course_its_spikes_and_its_bound() -> None:
    values = [math.exp(-step / 20_000) for step in range(100_000)]
    values[54_321] = 40.0
    curve = filled(values)
    points = list(curve)
    assert 32 <= len(points) <= 64
    assert points[-1].step == 100_000 and curve.last == values[-1] and curve.rows == 100_000
    assert max(point.high for point in points) == 40.0
    assert min(point.low for point in points) == min(values)
    assert all(
        left.mean > right.mean
        for left, right in zip(points, points[1:], strict=False)
        if 40.0 not in (left.high, right.high)
    )
    whole = sum(point.mean for point in points) / len(points)
    assert whole == pytest.approx(sum(values) / len(values), rel=0.02)


def test_steps_that_come_again_replace_the_ones_before() -> None:
    curve = filled([5.0, 4.0, 3.0, 2.0, 1.0])
    curve.add(3, 9.0)
    assert [(point.step, point.mean) for point in curve] == [(1, 5.0), (2, 4.0), (3, 9.0)]
    assert curve.rows == 3


def test_a_restart_in_a_long_curve_stays_in_order() -> None:
    curve = filled([1.0] * 10_000)
    for step in range(7_001, 12_001):
        curve.add(step, 2.0)
    points = list(curve)
    steps = [point.step for point in points]
    assert steps == sorted(set(steps)) and steps[-1] == 12_000 and len(points) <= 64
    assert points[0].mean == 1.0 and points[-1].mean == 2.0
    assert all(point.mean == 2.0 for point in points if point.step > 7_400)


def test_a_curve_may_begin_anew() -> None:
    curve = filled([1.0] * 1000)
    curve.add(1, 8.0)
    assert [(point.step, point.mean) for point in curve] == [(1, 8.0)]


def test_smoothing_is_level_on_a_level_and_not_late_on_a_slope() -> None:
    assert smooth([2.0] * 9) == pytest.approx([2.0] * 9)
    slope = [float(at) for at in range(200)]
    middle = course(slope)[50:150]
    assert middle == pytest.approx(slope[50:150], abs=0.5)


def test_a_falling_curve_is_drawn_from_top_left_to_bottom_right() -> None:
    points = [(float(step), 10.0 - step / 10) for step in range(101)]
    drawn = plot(points, [], 60, 12)
    assert len(drawn.lines) == 12 and all(len(line) <= 60 for line in drawn.lines)
    inside = [line[drawn.gutter :] for line in drawn.lines[:-1]]
    first, last = inside[0], inside[-1]
    assert first.strip() and first[0] != " " and last[-1] not in " \u2800"
    assert not first[30:].strip() and not last[:30].strip()
    assert drawn.lines[-1].split() == ["0", "25", "50", "75", "100"]


def test_marks_lie_where_their_points_are() -> None:
    points = [(0.0, 0.0), (10.0, 10.0)]
    drawn = plot(points, [(10.0, 10.0), (0.0, 0.0)], 40, 11)
    assert drawn.marks == [(0, 39), (9, drawn.gutter)]


def test_plain_characters_where_the_terminal_has_no_others() -> None:
    points = [(float(step), math.sin(step / 9)) for step in range(100)]
    text = "".join(plot(points, [], 50, 10, ascii=True).lines)
    assert text.isascii() and {".", ":", "'"} <= set(text)


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 0.0), (2.0, 0.0)], [(3.0, 1e-30)]])
def test_odd_curves_are_drawn_or_left_out(points: list[tuple[float, float]]) -> None:
    drawn = plot(points, [], 40, 8)
    assert len(drawn.lines) == (8 if points else 0)
    assert plot(points, [], 10, 2).lines == []  # no room


def test_sparks_fill_the_room_they_have() -> None:
    assert spark([1.0, 2.0, 3.0], 8) == "▁▅█" or spark([1.0, 2.0, 3.0], 8) == "▁▄█"
    assert len(spark([float(at) for at in range(75)], 36)) == 36
    assert spark([1.0], 8) == ""
    assert spark([100.0, 100.0], 8, (0.0, 100.0)) == "██" and spark([0.0, 0.0], 8) == "▁▁"


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (1.5, 7.3, 4, [2, 4, 6]), (3, 3, 4, [3])],
)
def test_ticks_are_round(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == expected


def test_numbers_as_people_read_them() -> None:
    assert [span_text(at) for at in (0.61, 12.4, 185, 7_805, 300_000)] == [
        "0.6 s",
        "12 s",
        "3:05 min",
        "2:10:05 h",
        "3 d 11 h",
    ]
    assert [byte_text(at) for at in (12, 3_927_007, 592 << 20, 3 << 40)] == [
        "12 B",
        "3.7 MiB",
        "592 MiB",
        "3.0 TiB",
    ]
    assert [number_text(at) for at in (2134.7, 0.00179933, 1.8e-5, 0.0)] == [
        "2,135",
        "0.001799",
        "1.8e-05",
        "0",
    ]
    assert [count_text(at) for at in (0, 1500, 2e6, 1e-5, 0.5)] == [
        "0",
        "1.5k",
        "2M",
        "1e-5",
        "0.5",
    ]
    assert clean("a\x1b[2Jb\nc\u202e") == "a\ufffd[2Jb c\ufffd"
