"""The memory of a step, storage by storage, as torch's CUDA allocator would count it."""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The caching allocator hands out multiples of this many bytes.
_GRAIN = 512
_aten = torch.ops.aten


@dataclass(frozen=True)
class Peak:
    """The peak: bytes, the phase and operation that reached it, and the peak of each phase."""

    bytes: int = 0
    phase: str = ""
    operation: str = ""
    parts: tuple[tuple[str, int], ...] = ()


class MemoryTrace(TorchDispatchMode):
    """Live and highest bytes of all storages that operations return, on top of those held.

    A storage belongs to the phase in which it was made. events: allocations (number of the storage,
    bytes) and releases (number, 0) in order, for a replay of the allocator.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.phase = "states"
        self.live = 0
        self.by_phase: Counter[str] = Counter()
        self.peak = Peak()
        self.peaks: dict[str, int] = {}
        self.events: list[tuple[int, int]] = []
        self._known: dict[int, tuple[int, int, str]] = {}
        self._count = 0
        for tensor in held:
            self.add(tensor)

    def start(self) -> None:
        """Forget the peaks, and what is gone: weights before they were cast or sharded."""
        self.peak, self.peaks = Peak(), {}
        self.events = [(number, size) for number, size, _ in self._known.values() if size]

    def enter(self, phase: str) -> None:
        self.phase = phase

    def add(self, tensor: torch.Tensor, operation: str = "") -> None:
        """Count the storage of a tensor of any shape, if it is new."""
        # A sharded tensor reports the storage of the whole; this rank holds only its own part.
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        storage = local.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // _GRAIN) * _GRAIN
        self._count += 1
        self._known[key] = (self._count, size, self.phase)
        self.events.append((self._count, size))
        self.live += size
        self.by_phase[self.phase] += size
        self._reached(self.live, operation)
        weakref.finalize(storage, self._drop, key)

    def resized(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage again, of any shape: FSDP2 frees and refills it in place."""
        storage = tensor.untyped_storage()
        known = self._known.pop(storage._cdata, None)
        if known is None:
            return
        number, size, phase = known
        self.events.append((number, 0))
        self.live -= size
        self.by_phase[phase] -= size
        new = -(-storage.nbytes() // _GRAIN) * _GRAIN
        self._known[storage._cdata] = (number, new, phase)
        if new:
            self.events.append((number, new))
            self.live += new
            self.by_phase[phase] += new
            self._reached(self.live, "all-gather")

    def _drop(self, key: int) -> None:
        number, size, phase = self._known.pop(key)
        self.events.append((number, 0))
        self.live -= size
        self.by_phase[phase] -= size

    def held_for_a_moment(self, size: int, operation: str) -> None:
        """Bytes that one operation holds inside itself, beside its results."""
        self._count += 1
        self.events += [(self._count, size), (self._count, 0)]
        self._reached(self.live + size, operation)

    def _reached(self, size: int, operation: str) -> None:
        self.peaks[self.phase] = max(size, self.peaks.get(self.phase, 0))
        if size > self.peak.bytes:
            parts = tuple((phase, held) for phase, held in self.by_phase.items() if held)
            self.peak = Peak(size, self.phase, operation, parts)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        name = str(function)
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor):
                self.add(value, name)
        if function is _aten._softmax_backward_data.default:
            # CUDA's kernel makes the product of the gradient and the softmax first.
            self.held_for_a_moment(args[0].numel() * args[0].element_size(), name)
        return output
