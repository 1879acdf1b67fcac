"""Statistics of LeRobot features, for each episode and over all."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)


class Described(ABC):
    """A summary that can be added up: min, max, mean, std, count and quantiles."""

    @abstractmethod
    def describe(self) -> dict[str, np.ndarray]: ...

    def as_json(self) -> dict[str, Any]:
        """The description as nested lists."""
        return {name: value.tolist() for name, value in self.describe().items()}


class VectorStats(Described):
    """All values [steps, size] of one feature: they are small enough to keep."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def describe(self) -> dict[str, np.ndarray]:
        """Statistics by name: [size] each, `count` [1]."""
        exact = self.values.astype(np.float64)
        whole = self.values.dtype.kind == "i"
        table = {
            "min": self.values.min(0) if whole else exact.min(0),
            "max": self.values.max(0) if whole else exact.max(0),
            "mean": exact.mean(0),
            "std": exact.std(0),
            "count": np.array([len(exact)]),
        }
        return table | {name: np.quantile(exact, q, axis=0) for name, q in QUANTILES.items()}


class ImageStats(Described):
    """Histograms int64 [3, 256] of images; described in 0..1 with shape [3, 1, 1]."""

    def __init__(self, histograms: Sequence[np.ndarray], count: int | None = None) -> None:
        self.histogram_sum = np.sum(histograms, axis=0)
        self.count = len(histograms) if count is None else count

    def describe(self) -> dict[str, np.ndarray]:
        """Statistics by name: [3, 1, 1] each, in 0..1; `count` [1]."""
        levels = np.arange(256) / 255.0
        sums = self.histogram_sum.astype(np.float64)
        share = sums / sums.sum(1, keepdims=True)
        mean = share @ levels
        below = share.cumsum(1)
        used = self.histogram_sum > 0
        table = {
            "min": levels[used.argmax(1)],
            "max": levels[255 - used[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        }
        for name, quantile in QUANTILES.items():
            table[name] = levels[np.minimum((below < quantile - 1e-12).sum(1), 255)]
        shaped = {name: value.reshape(3, 1, 1) for name, value in table.items()}
        shaped["count"] = np.array([self.count])
        return {name: shaped[name] for name in NAMES}


def total(parts: Sequence[Described]) -> Described:
    """One feature over all episodes."""
    if isinstance(parts[0], VectorStats):
        return VectorStats(np.concatenate([cast(VectorStats, part).values for part in parts]))
    ours = [cast(ImageStats, part) for part in parts]
    return ImageStats([p.histogram_sum for p in ours], sum(p.count for p in ours))
