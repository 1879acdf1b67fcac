"""Every row exactly once, no group over capacity, and hardly any air."""

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from workloads.data.packing import pack
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def fewest_thinkable(lengths: Sequence[int] | np.ndarray, capacity: int) -> int:
    return -(-int(np.sum(lengths)) // capacity)


def assert_valid(groups: list[list[int]], lengths: Sequence[int], capacity: int) -> None:
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sizes = np.asarray(lengths)
    assert all(group and sizes[group].sum() <= capacity for group in groups)
    assert all(group == sorted(group) for group in groups)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> int:
    """Bins that the textbook algorithm needs."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=spaces.__getitem__)] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)


def random_lengths(rng: np.random.Generator, rows: int, capacity: int) -> list[int]:
    low, high = sorted(rng.integers(1, capacity + 1, 2).tolist())
    draws = [
        rng.integers(low, high + 1, rows),
        rng.integers(1, max(2, capacity // 8), rows),
        rng.lognormal(np.log(capacity) - rng.uniform(0.5, 4), rng.uniform(0.1, 1.5), rows),
        np.full(rows, low),
        rng.choice([low, high], rows),
    ]
    chosen = draws[rng.integers(len(draws))]
    return np.clip(chosen, 1, capacity).astype(int).tolist()


def test_random_inputs_are_packed_whole_and_no_worse_than_the_textbook():
    rng = np.random.default_rng(5)
    for _ in range(250):
        capacity = int(rng.integers(1, 5000))
        lengths = random_lengths(rng, int(rng.integers(1, 120)), capacity)
        groups = pack(lengths, capacity)
        assert_valid(groups, lengths, capacity)
        assert len(groups) <= best_fit_decreasing(lengths, capacity)


def test_random_inputs_of_many_rows():
    rng = np.random.default_rng(6)
    for _ in range(15):
        capacity = int(rng.integers(2, 9000))
        lengths = random_lengths(rng, int(rng.integers(4097, 20_000)), capacity)
        assert_valid(pack(lengths, capacity), lengths, capacity)


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [(4, 0.5), (5, 1.0), (5.5, 0.8), (6, 0.1), (6, 0.6), (6, 1.0), (6.5, 0.6), (7, 0.5), (7, 1.0)],
)
def test_lognormal_lengths_leave_less_than_a_thousandth_of_air(mean, deviation):
    draws = np.random.default_rng(7).lognormal(mean, deviation, 200_000)
    lengths = np.clip(draws, 1, 4096).astype(np.int64)
    groups = pack(lengths, 4096)
    assert_valid(groups, lengths, 4096)
    assert fewest_thinkable(lengths, 4096) >= 0.999 * len(groups)


def test_the_same_lengths_give_the_same_groups_from_a_list_and_an_array():
    lengths = np.random.default_rng(8).integers(1, 900, 5000)
    groups = pack(lengths, 2048)
    assert groups == pack(lengths.tolist(), 2048) == pack(lengths.astype(np.uint16), 2048)
    assert isinstance(groups[0][0], int)


def test_groups_are_not_in_the_order_of_lengths():
    lengths = np.random.default_rng(9).integers(1, 4097, 20_000)
    longest = [lengths[group].max() for group in pack(lengths, 4096)]
    order = np.arange(len(longest))
    assert abs(np.corrcoef(order, longest)[0, 1]) < 0.05


def test_no_rows():
    assert pack([], 10) == []
    assert pack(np.empty(0, np.int64), 10) == []


def test_one_row_and_rows_that_fill_a_group_alone():
    assert pack([7], 10) == [[0]]
    assert pack([10, 10, 10], 10) == [[0], [1], [2]]
    assert pack([1], 1) == [[0]]


def test_few_rows_that_fit_exactly():
    assert pack([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("rows", [2, 3, 1000, 5001])
def test_half_a_capacity_and_one_never_shares(rows):
    assert pack([51] * rows, 100) == [[row] for row in range(rows)]


@pytest.mark.parametrize(("length", "a_group"), [(50, 2), (33, 3), (34, 2), (1, 100), (99, 1)])
@pytest.mark.parametrize("rows", [1, 7, 600, 6000])
def test_equal_lengths(length, a_group, rows):
    groups = pack([length] * rows, 100)
    assert_valid(groups, [length] * rows, 100)
    assert len(groups) == -(-rows // a_group)


def test_long_rows_with_short_ones_to_match_leave_no_air():
    long = np.random.default_rng(10).integers(2100, 4000, 10_000)
    lengths = np.concatenate((long, 4096 - long))
    assert len(pack(lengths, 4096)) <= 1.005 * len(long)


def test_a_capacity_as_large_as_a_book():
    lengths = np.random.default_rng(11).integers(1, 2_000_000_000_000, 10_000)
    groups = pack(lengths, 2**60)
    assert_valid(groups, lengths, 2**60)
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([3, 11, 2], r"row 1: expected a length from 1 to 10, found 11; .*capacity"),
        ([3, 11, 12], r"row 1: .*found 11 \(and 1 more\)"),
        ([3, 2, 0], r"row 2: .*found 0; drop empty rows"),
        ([-4], r"row 0: .*found -4"),
        ([1.5, 2.0], "whole number.*float64"),
        ([[1, 2], [3, 4]], r"whole number.*\(2, 2\)"),
        (["a"], "whole number"),
        ([True, False], "whole number.*bool"),
    ],
)
def test_lengths_that_cannot_be_packed_are_refused(lengths, found):
    with pytest.raises(UserError, match=found):
        pack(lengths, 10)


def test_a_capacity_below_one_is_refused():
    with pytest.raises(UserError, match="capacity of at least 1, found 0"):
        pack([1], 0)


def test_importing_it_loads_no_training_library():
    code = "import sys, workloads.data.packing; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
