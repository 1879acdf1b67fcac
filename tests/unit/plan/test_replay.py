"""The allocator's policy, on series whose answer can be worked out by hand."""

import pytest

from workloads.plan.replay import reserved_bytes

pytestmark = pytest.mark.unit
MIB = 1 << 20


@pytest.mark.parametrize(
    ("events", "blocks", "expandable"),
    [
        pytest.param([], 0, 0, id="nothing"),
        pytest.param([(1, 100)], 2 * MIB, 2 * MIB, id="a small one takes a small segment"),
        pytest.param([(1, 2 * MIB)], 20 * MIB, 20 * MIB, id="a middle one takes 20 MiB"),
        pytest.param([(1, 11 * MIB)], 12 * MIB, 20 * MIB, id="a large one is rounded to 2 MiB"),
        pytest.param(
            [(1, 11 * MIB), (1, 0), (2, 12 * MIB)], 12 * MIB, 20 * MIB, id="a freed one is reused"
        ),
        pytest.param(
            [(1, 30 * MIB), (1, 0), (2, 10 * MIB), (3, 20 * MIB)], 30 * MIB, 40 * MIB, id="split"
        ),
        pytest.param(
            # Two neighbours are freed and merged; without one block for both a third would be made.
            [(1, 40 * MIB), (1, 0), (2, 20 * MIB), (3, 20 * MIB), (2, 0), (3, 0), (4, 40 * MIB)],
            40 * MIB,
            40 * MIB,
            id="merge",
        ),
        pytest.param(
            # Segments of their own cannot be joined; a segment that grows at its end can.
            [(1, 20 * MIB), (2, 20 * MIB), (1, 0), (2, 0), (3, 40 * MIB)],
            80 * MIB,
            40 * MIB,
            id="two segments are two",
        ),
    ],
)
def test_reserved(events: list[tuple[int, int]], blocks: int, expandable: int) -> None:
    assert reserved_bytes(events, expandable=False) == blocks
    assert reserved_bytes(events, expandable=True) == expandable
