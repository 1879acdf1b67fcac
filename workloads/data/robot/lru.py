"""LRU cache."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Keeps the `size` most recently used values; worker processes start empty."""

    def __init__(self, size: int, drop: Callable[[Value], None] | None = None) -> None:
        self.size = size
        self._drop = drop
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, load: Callable[[], Value]) -> Value:
        """The cached value of `key`, else that of `load`, whose errors pass through."""
        if key not in self._kept:
            self._kept[key] = load()
            while len(self._kept) > self.size:
                oldest = self._kept.popitem(last=False)[1]
                if self._drop is not None:
                    self._drop(oldest)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "_drop": self._drop, "_kept": OrderedDict()}
