"""Ranks that go on and yet lag: named by how far, and by how slow they are. O-D3"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.ranks import RankStatus
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.stragglers import Stragglers

pytestmark = pytest.mark.unit


def rank(number: int, step: int, beaten: float = 0.0, **facts: object) -> RankStatus:
    usual: dict[str, object] = {
        **{"rank": number, "node": number // 8, "host": "n", "pid": 1, "phase": "training"},
        **{"step": step, "progress": step, "attempt": 0, "memory": 1, "age": 0.5, "sure": True},
        **{"here": False, "idle": 0.0, "state": "ok", "beaten": beaten},
    }
    return RankStatus(**{**usual, **facts})  # type: ignore[arg-type]


def states(ranks: list[RankStatus]) -> Mapping[int, str]:
    return {rank.rank: rank.state for rank in ranks if rank.state != "ok"}


@pytest.mark.parametrize(
    ("lag", "pace", "named"),
    [
        (90, 0.5, True),
        (8, 0.5, True),
        (4, 0.5, False),  # heartbeats of a second explain it
        (2, 10.0, True),  # two long steps
        (1, 10.0, False),
        (12, None, True),
        (5, None, False),
    ],
)
def test_a_rank_some_steps_behind_is_named(lag: int, pace: float | None, named: bool) -> None:
    ranks = [rank(number, 500 - lag * (number == 12)) for number in range(64)]
    found = Stragglers().mark(ranks, pace)
    assert states(found) == ({12: "behind"} if named else {})
    assert found[12].lag == (lag if named else 0)


def test_of_two_ranks_the_later_one_is_behind() -> None:
    assert states(Stragglers().mark([rank(0, 500), rank(1, 400)], 0.5)) == {1: "behind"}


def test_only_a_rank_that_trains_is_behind() -> None:
    ranks = [rank(0, 500), rank(1, 500), rank(2, 400, phase="saving"), rank(3, 400, state="late")]
    assert states(Stragglers().mark(ranks, 0.5)) == {3: "late"}


@pytest.mark.parametrize(("factor", "slow"), [(1.2, False), (1.4, True), (1.6, True)])
def test_a_rank_slower_than_the_median_by_a_third_is_named(factor: float, slow: bool) -> None:
    stragglers, found = Stragglers(), []
    for second in range(0, 21, 2):
        # Each rank by its own clock; the slow one has not fallen behind yet.
        ranks = [rank(at, 1000 + second * 10, 1e6 * at + second) for at in range(8)]
        ranks[5] = rank(5, 1200 + int(second * 10 / factor), second)
        found = stragglers.mark(ranks, None)
    assert states(found) == ({5: "slow"} if slow else {})
    assert found[5].pace == pytest.approx(factor / 10, rel=0.05)


def test_too_little_seen_is_no_speed() -> None:
    stragglers = Stragglers()
    for second in range(0, 9):
        ranks = [rank(at, 1000 + second * (10 if at else 2), float(second)) for at in range(4)]
        assert all(rank.pace is None for rank in stragglers.mark(ranks, None))


def test_a_rank_that_began_anew_is_not_measured_across_that() -> None:
    stragglers = Stragglers()
    for second in range(0, 31):
        stragglers.mark([rank(at, 10 * second, float(second)) for at in range(4)], 0.1)
    found = stragglers.mark([rank(at, 5, 1.0, attempt=1) for at in range(4)], 0.1)
    assert all(item.pace is None for item in found)


def test_it_is_warned_of_with_the_rank_s_name(tmp_path: Path) -> None:
    written = Written(tmp_path).begun(world_size=64, max_steps=4000).losses([2.0] * 30)
    for number in range(64):
        written.beat(number, node=number // 8, step=2094 - 90 * (number == 12), host=f"n{number}")
    snapshot = RunReader(written.run).read()
    assert [rank.rank for rank in snapshot.ranks if rank.state == "behind"] == [12]
    (alert,) = [alert for alert in alerts(snapshot) if "behind" in alert.text]
    assert alert.bad and alert.text.startswith("rank 12 (node 1, n12")
    assert "is 90 steps behind the others, at step 2,004" in alert.text


def test_many_ranks_in_one_trouble_are_one_line(tmp_path: Path) -> None:
    written = Written(tmp_path).begun(world_size=32).losses([2.0])
    for number in range(32):
        written.beat(number, ago=20 if number > 10 else 0, step=5, host="n")
    found = [
        alert.text for alert in alerts(RunReader(written.run).read()) if "stalled" in alert.text
    ]
    assert found == ["21 ranks are stalled: rank 11, 12, 13, 14, 15, 16, 17, 18 …"]
