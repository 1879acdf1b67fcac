"""Replays torch's caching allocator: bytes it reserves for a series of allocations.

Written after c10/cuda/CUDACachingAllocator.cpp of torch 2.13: sizes are rounded up to 512 bytes;
small ones (up to 1 MiB) live in segments of 2 MiB, larger ones under 10 MiB in segments of 20 MiB,
the rest in segments of their own, rounded up to 2 MiB. The best fitting free block is taken and
split where enough is left; neighbours that are free are merged; nothing is given back.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from workloads.device import MIB

# kMinBlockSize, kSmallSize and kSmallBuffer; kMinLargeAlloc, kLargeBuffer and kRoundLarge there.
_GRAIN, _SMALL, _SMALL_SEGMENT = 512, MIB, 2 * MIB
_LARGE_FROM, _LARGE_SEGMENT, _ROUND = 10 * MIB, 20 * MIB, 2 * MIB


@dataclass
class _Block:
    segment: int
    start: int
    size: int
    is_small: bool
    before: "_Block | None" = None
    after: "_Block | None" = None
    is_free: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        return self.size, self.segment, self.start


class _Allocator:
    """The allocator's state; expandable: segments grow at their end instead of new ones."""

    def __init__(self, expandable: bool) -> None:
        self.expandable = expandable
        self.reserved = 0
        self._segments = 0
        self._free: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
        self._blocks: dict[tuple[int, int, int], _Block] = {}
        self._ends: dict[bool, _Block] = {}

    def take(self, size: int) -> _Block:
        size = max(_GRAIN, -(-size // _GRAIN) * _GRAIN)
        is_small = size <= _SMALL
        free = self._free[is_small]
        place = bisect_left(free, (size, 0, 0))
        block = self._remove(self._blocks[free[place]]) if place < len(free) else None
        if block is None:
            block = self._grown(size, is_small) if self.expandable else self._made(size, is_small)
        left = block.size - size
        # Large blocks of fixed segments are split only where a large block would be left.
        if left >= _GRAIN if is_small or self.expandable else left > _SMALL:
            rest = _Block(block.segment, block.start + size, left, is_small, block, block.after)
            if block.after:
                block.after.before = rest
            elif self._ends.get(is_small) is block:
                self._ends[is_small] = rest
            block.size, block.after = size, rest
            self._add(rest)
        return block

    def _made(self, size: int, is_small: bool) -> _Block:
        if is_small:
            whole = _SMALL_SEGMENT
        else:
            whole = _LARGE_SEGMENT if size < _LARGE_FROM else -(-size // _ROUND) * _ROUND
        self._segments += 1
        self.reserved += whole
        return _Block(self._segments, 0, whole, is_small)

    def _grown(self, size: int, is_small: bool) -> _Block:
        """Grow the block at the segment's end by whole pages."""
        # A page is as large as a segment without expandable segments.
        page = _SMALL_SEGMENT if is_small else _LARGE_SEGMENT
        last = self._ends.get(is_small)
        have = last.size if last is not None and last.is_free else 0
        more = -(-(size - have) // page) * page
        self.reserved += more
        if last is not None and last.is_free:
            self._remove(last)
            last.size += more
            return last
        start = last.start + last.size if last is not None else 0
        block = _Block(-1 if is_small else -2, start, more, is_small, last)
        if last is not None:
            last.after = block
        self._ends[is_small] = block
        return block

    def give(self, block: _Block) -> None:
        before, after = block.before, block.after
        if before is not None and before.is_free:
            self._remove(before)
            block.start, block.size = before.start, before.size + block.size
            block.before = before.before
            if block.before:
                block.before.after = block
        if after is not None and after.is_free:
            self._remove(after)
            block.size += after.size
            block.after = after.after
            if block.after:
                block.after.before = block
            elif self._ends.get(block.is_small) is after:
                self._ends[block.is_small] = block
        self._add(block)

    def _add(self, block: _Block) -> None:
        block.is_free = True
        insort(self._free[block.is_small], block.key)
        self._blocks[block.key] = block

    def _remove(self, block: _Block) -> _Block:
        free = self._free[block.is_small]
        del free[bisect_left(free, block.key)]
        del self._blocks[block.key]
        block.is_free = False
        return block


def reserved_bytes(events: Iterable[tuple[int, int]], expandable: bool = True) -> int:
    """Bytes that the allocator has taken from the card after all events.

    events: (number of a storage, bytes) where it is made, (number, 0) where it is dropped.
    expandable: with `expandable_segments:True`, as our services run.
    """
    return _replayed(events, expandable)[0].reserved


def unsplit_bytes(events: Iterable[tuple[int, int]]) -> int:
    """Bytes that torch calls allocated after all events, beyond those that were asked for.

    They are rests of large blocks of fixed segments, too small to be split off. events: as above.
    """
    _, held = _replayed(events, expandable=False)
    return sum(block.size - size for block, size in held.values())


def _replayed(
    events: Iterable[tuple[int, int]], expandable: bool
) -> tuple[_Allocator, dict[int, tuple[_Block, int]]]:
    """The allocator after all events, and the blocks that are held with the bytes asked for."""
    allocator = _Allocator(expandable)
    held: dict[int, tuple[_Block, int]] = {}
    for number, size in events:
        if size:
            held[number] = allocator.take(size), size
        elif number in held:
            allocator.give(held.pop(number)[0])
    return allocator, held
