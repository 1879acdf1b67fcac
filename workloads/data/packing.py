"""Put rows of known length into as few sequences of one capacity as possible.

Bin packing by balancing instead of by greed. Best-fit decreasing, the usual choice, walks through
the rows one by one and leaves gaps that nothing fits any more. Here the number of bins is fixed at
what the sum of the lengths asks for, a first deal may overfill some of them, and then all bins
exchange rows at once: each lays one row on the table, rows and the spaces they leave are sorted,
and the longest row goes to the widest space. Of all ways to hand the table's rows back this one
overfills least, so no exchange makes matters worse, and since both sides are close in distribution
the overfill left shrinks about quadratically: a dozen exchanges of some milliseconds each do.
What still does not fit then moves to the gaps of other bins and to new ones.

Where long rows make that number of bins impossible, a few numbers in between are tried.

Everything is numpy on whole arrays. Nothing is random, and every order is settled down to ties, so
that nodes with different processors agree.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workloads.errors import UserError

Ints = NDArray[np.int64]

# Bins beyond the smallest thinkable number, as a share of it: with a token or two of air in each
# bin the exchange ends at no overfill at all, which costs far fewer bins than moving rows would.
_AIR = 2e-4
_MOST_EXCHANGES = 48
# Up to this many bins over the bound, as a share of it, another try would not pay.
_CLOSE = 1e-2
_MORE_TRIES = 4
# So few rows take no time even one by one, and luck of the deal weighs most there.
_FEW_ROWS = 4096
_UNPLACED = -1


def pack(lengths: Sequence[int] | NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Row indices in groups whose lengths sum to at most `capacity`; every row exactly once.

    `lengths` [rows] and `capacity` are in the same unit (tokens). The same input gives the same
    groups. Indices in a group ascend, and groups are ordered by their first index: an order that
    says nothing about lengths, so that training on it unshuffled has no drift from long to short.
    Shuffling is the loader's business. Raises UserError for a length below 1 or over `capacity`,
    naming the row.
    """
    if capacity < 1:
        raise UserError(f"expected a capacity of at least 1, found {capacity}; raise it")
    if len(lengths) == 0:
        return []
    sizes = _checked(lengths, capacity)
    bin_of = _packed(sizes, capacity)
    if len(sizes) <= _FEW_ROWS:
        bin_of = min(bin_of, _best_fit_decreasing(sizes, capacity), key=_bins_used)
    return _groups(bin_of)


def _checked(lengths: Sequence[int] | NDArray[np.integer], capacity: int) -> Ints:
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise UserError(
            f"expected one whole number a row as lengths, found {sizes.dtype} of shape "
            f"{sizes.shape}; give the number of tokens of each row"
        )
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        row, size = int(wrong[0]), int(sizes[wrong[0]])
        fix = "drop empty rows" if size < 1 else "truncate or drop it, or raise the capacity"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"row {row}: expected a length from 1 to {capacity}, found {size}{more}; {fix}"
        )
    return sizes.astype(np.int64)


def _packed(sizes: Ints, capacity: int) -> Ints:
    """The best of some tries with different numbers of bins; the first one is good as a rule."""
    bound = _bins_to_try(sizes, capacity)
    best = _balanced(sizes, capacity, bound)
    too_few, enough = bound, _bins_used(best)
    for _ in range(_MORE_TRIES):
        if enough - too_few <= _CLOSE * enough:
            break
        bins = (too_few + enough) // 2
        tried = _balanced(sizes, capacity, bins)
        if _bins_used(tried) > bins:
            too_few = bins
        if _bins_used(tried) < enough:
            best, enough = tried, _bins_used(tried)
    return best


def _bins_used(bin_of: Ints) -> int:
    return int(np.count_nonzero(np.bincount(bin_of)))


def _balanced(sizes: Ints, capacity: int, bins: int) -> Ints:
    """The bin of each row, in `bins` bins if that works out, else in some more."""
    space = np.full(bins, capacity)
    bin_of = np.full(len(sizes), _UNPLACED)
    left = _fill(sizes, _places_by(capacity - sizes), bin_of, space, np.arange(bins))
    if len(left) == 0:
        return bin_of
    _overfill(sizes, left, bin_of, space)
    _exchange(sizes, bin_of, space)
    left = _evict(sizes, bin_of, space)
    left = _fill(sizes, left, bin_of, space, np.arange(bins))
    while len(left):
        fresh = np.arange(len(space), len(space) + _bins_to_try(sizes[left], capacity))
        space = np.concatenate((space, np.full(len(fresh), capacity)))
        left = _fill(sizes, left, bin_of, space, fresh)
    return bin_of


def _places_by(key: Ints) -> Ints:
    """Like a stable argsort of whole numbers, several times as fast.

    numpy counts numbers of 16 bits instead of comparing them; wider ones take a turn for each 16.
    """
    key = key - key.min(initial=0)
    places = np.argsort(key.astype(np.uint16), kind="stable")
    while (key := key >> 16).any():
        places = places[np.argsort(key[places].astype(np.uint16), kind="stable")]
    return places


def _bins_to_try(sizes: Ints, capacity: int) -> int:
    by_sum = -(-int(sizes.sum()) // capacity)
    longer_than_half = int(np.count_nonzero(2 * sizes > capacity))
    return max(by_sum + int(by_sum * _AIR), longer_than_half)


def _fill(sizes: Ints, rows: Ints, bin_of: Ints, space: Ints, bins: Ints) -> Ints:
    """Let each of `bins` take, round after round, the longest row that fits; returns the rest.

    `rows` come and go longest first. Within a round no row is taken twice: the bin at place i
    takes the row at place p(i) = max(p(i - 1) + 1, first row that fits), a running maximum once
    i is subtracted.
    """
    while len(rows):
        bins = bins[space[bins] >= sizes[rows[-1]]]
        bins = bins[_places_by(-space[bins])]
        place = np.arange(len(bins))
        fits = np.searchsorted(-sizes[rows], -space[bins])
        taken = np.maximum.accumulate(fits - place) + place
        served = taken < len(rows)
        if not served.any():
            break
        bins, taken = bins[served], taken[served]
        bin_of[rows[taken]] = bins
        space[bins] -= sizes[rows[taken]]
        rows = np.delete(rows, taken)
    return rows


def _overfill(sizes: Ints, rows: Ints, bin_of: Ints, space: Ints) -> None:
    """Place `rows` (longest first) where most space is left, whether they fit or not."""
    for start in range(0, len(rows), len(space)):
        part = rows[start : start + len(space)]
        widest = _places_by(-space)[: len(part)]
        bin_of[part] = widest
        space[widest] -= sizes[part]


def _exchange(sizes: Ints, bin_of: Ints, space: Ints) -> None:
    """Redistribute one row of every bin at a time until none is overfilled or it stops paying.

    Each bin also holds one row of no length: exchanging that one moves a row to another bin.
    """
    bins = len(space)
    rows = _places_by(np.concatenate((bin_of, np.arange(bins))))
    size = np.concatenate((sizes, np.zeros(bins, sizes.dtype)))[rows]
    count = np.bincount(bin_of, minlength=bins) + 1
    first = np.cumsum(count) - count
    overfill = [_overfilled(space)]
    while overfill[-1] and len(overfill) <= _MOST_EXCHANGES and _pays(overfill):
        table = first + len(overfill) % count
        row, freed = rows[table], space + size[table]
        by_size, by_space = _places_by(size[table]), _places_by(freed)
        given = size[table][by_size]
        rows[table[by_space]] = row[by_size]
        size[table[by_space]] = given
        space[by_space] = freed[by_space] - given
        overfill.append(_overfilled(space))
    real = rows < len(sizes)
    bin_of[rows[real]] = np.repeat(np.arange(bins), count)[real]


def _overfilled(space: Ints) -> int:
    return -int(np.minimum(space, 0).sum())


def _pays(overfill: list[int]) -> bool:
    """Whether the last exchanges removed a fair share of the overfill (3 % in five)."""
    return len(overfill) <= 5 or overfill[-1] <= 0.97 * overfill[-6]


def _evict(sizes: Ints, bin_of: Ints, space: Ints) -> Ints:
    """Take rows out of overfilled bins until none is; returns them, longest first.

    A bin gives its shortest row that ends the overfill, else its longest.
    """
    evicted = []
    while (space < 0).any():
        rows = np.flatnonzero((bin_of != _UNPLACED) & (space[bin_of] < 0))
        enough = sizes[rows] >= -space[bin_of[rows]]
        cost = np.where(enough, sizes[rows], 2 * sizes.max() - sizes[rows])
        rows = rows[np.lexsort((cost, bin_of[rows]))]
        rows = rows[np.unique(bin_of[rows], return_index=True)[1]]
        space[bin_of[rows]] += sizes[rows]
        bin_of[rows] = _UNPLACED
        evicted.append(rows)
    out = np.concatenate(evicted) if evicted else np.empty(0, np.int64)
    return out[_places_by(-sizes[out])]


def _best_fit_decreasing(sizes: Ints, capacity: int) -> Ints:
    """The bin of each row, row by row into the tightest space: O(rows x bins)."""
    bin_of = np.empty(len(sizes), np.int64)
    open_bins: list[tuple[int, int]] = []  # (space, bin), ascending
    bins = 0
    for row in _places_by(-sizes).tolist():
        size = int(sizes[row])
        place = bisect_left(open_bins, (size, 0))
        if place < len(open_bins):
            space, target = open_bins.pop(place)
        else:
            space, target, bins = capacity, bins, bins + 1
        bin_of[row] = target
        left = (space - size, target)
        open_bins.insert(bisect_left(open_bins, left), left)
    return bin_of


def _groups(bin_of: Ints) -> list[list[int]]:
    rows = _places_by(bin_of)
    starts = np.flatnonzero(np.diff(bin_of[rows], prepend=_UNPLACED))
    ends = np.append(starts[1:], len(rows))
    order = np.argsort(rows[starts])
    flat = rows.tolist()
    bounds = zip(starts[order].tolist(), ends[order].tolist(), strict=True)
    return [flat[start:end] for start, end in bounds]
