"""What a plan learns from runs that are here."""

from pathlib import Path

import pytest

from tests.support.planning import GIB, OFFLINE, of, total
from tests.support.run_files import Written
from workloads.plan.cards import find_card
from workloads.plan.earlier import earlier_runs, overhead_of, rows_of
from workloads.plan.estimate import verdict
from workloads.run import write_manifest

pytestmark = pytest.mark.unit


def measured(written: Written, overhead: int, card: str = "NVIDIA GeForce RTX 4090") -> None:
    sizes = {"allocated": 9 * GIB, "reserved": 10 * GIB, "process": 10 * GIB + overhead}
    memory = {"card": card, "world_size": 2, "planned": sizes, "measured": sizes}
    write_manifest(written.run, {"memory": memory, "data": {"train": {"rows": 1234}}})


def test_a_card_has_the_overhead_that_was_measured_on_it(tmp_path: Path) -> None:
    for number, overhead in enumerate((300, 500, 400)):
        measured(Written(tmp_path, id=f"20260101-12000{number}-abcd"), overhead)
    measured(Written(tmp_path, id="20260101-120009-abcd"), 9000, card="NVIDIA H200")
    runs = earlier_runs(tmp_path)
    assert len(runs) == 4
    assert overhead_of(find_card("rtx 4090"), runs) == 400
    assert overhead_of(find_card("h100"), runs) is None
    assert overhead_of(None, runs) is None


def test_a_plan_takes_a_learnt_overhead(tmp_path: Path) -> None:
    found = of(tmp_path)
    spare = found.reserved - (found.allocated or 0)
    learnt = found.with_overhead(3 * GIB)
    assert total(learnt) == (found.allocated or 0) + spare + 3 * GIB
    assert (learnt.allocated, learnt.reserved) == (found.allocated, found.reserved)


def test_a_run_tells_its_rows_and_its_speed(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([5.0, 4.0, 3.0, 2.0])
    measured(written, 400)
    (run,) = earlier_runs(tmp_path)
    assert rows_of(written.run.config(), [run]) == (1234, f"run {written.run.id}")
    seen = run.utilisation(OFFLINE)
    assert seen is not None and seen.card == "rtx 4090" and 0 < seen.share < 1
    assert seen.source == f"run demo/{written.run.id}"


def test_a_run_without_a_gpu_teaches_nothing(tmp_path: Path) -> None:
    written = Written(tmp_path).begun().losses([5.0, 4.0, 3.0])
    write_manifest(written.run, {"memory": {"card": None, "measured": None}})
    (run,) = earlier_runs(tmp_path)
    assert (run.card, run.overhead, run.rows, run.utilisation(OFFLINE)) == (None, None, None, None)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.5, "fits in a GPU of {size}, 50% to spare"),
        (0.94, "fits in a GPU of {size} with 6% to spare: not safe"),
        (2.0, "does not fit in a GPU of {size}: {over} too much"),
    ],
)
def test_a_verdict_in_words(share: float, text: str, tmp_path: Path) -> None:
    found = of(tmp_path)
    memory = int(total(found) / share)
    size, over = (f"{part / GIB:.1f} GiB" for part in (memory, total(found) - memory))
    assert verdict(found, memory) == text.format(size=size, over=over)
