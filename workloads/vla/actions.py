"""Robot actions: normalisation by statistics, and action tokens.

Everything here is numpy. Statistics are those of `dataset_statistics.json`: per dimension mean,
std, min, max, q01, q99 and optionally `mask`, where false leaves a dimension as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from workloads.errors import UserError

EPSILON = 1e-8
MODES = ("normal", "bounds", "bounds_q99")


class ActionTokenizer:
    """Normalised actions ↔ the last ids of the tokenizer's vocabulary, one bin each.

    `vocab_size` is the tokenizer's own size (32000 for Llama 2), without padding rows. -1 is the
    last id, +1 lies `bins` before it; decoding gives the centres of the `bins - 1` intervals.
    low, high: values instead of -1 and +1.
    """

    def __init__(
        self, vocab_size: int, bins: int = 256, low: float = -1.0, high: float = 1.0
    ) -> None:
        if not 2 <= bins <= vocab_size:
            raise UserError(f"expected 2 to {vocab_size} action bins, found {bins}")
        self.vocab_size = vocab_size
        self.bins = bins
        self.edges = np.linspace(low, high, bins)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2.0

    @property
    def first_id(self) -> int:
        """The smallest id that stands for an action."""
        return self.vocab_size - self.bins

    def encode(self, actions: ArrayLike) -> np.ndarray:
        """Actions of any shape → int64 ids of that shape; values outside the bins are clipped.

        Raises UserError for NaN.
        """
        values = np.asarray(actions)
        if np.isnan(values).any():
            raise UserError("expected action values, found NaN; look at the data with data inspect")
        # The edges are float64, so float32 actions are compared as float64: no rounding of edges.
        bins = np.digitize(np.clip(values, float(self.edges[0]), float(self.edges[-1])), self.edges)
        return np.asarray(self.vocab_size - bins, dtype=np.int64)

    def decode(self, ids: ArrayLike) -> np.ndarray:
        """Ids of any shape → float64 bin centres; ids outside the action range are clipped."""
        bins = self.vocab_size - np.asarray(ids, dtype=np.int64) - 1
        return np.asarray(self.centres[np.clip(bins, 0, len(self.centres) - 1)])


def normalize(actions: ArrayLike, stats: Mapping[str, Any], mode: str = "bounds_q99") -> np.ndarray:
    """Map actions [..., D] to the model's range; float32 stays float32, all else is float64.

    mode "normal": (x - mean) / std; "bounds" and "bounds_q99": min..max or q01..q99 to [-1, 1],
    clipped, and 0 where min equals max. Dimensions masked out pass through unclipped.
    """
    table = _table(stats)
    values = np.asarray(actions)
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    mask, kind = _mask(table, values), values.dtype
    # Ranges are taken in float64 and rounded once, as the published code does with its statistics.
    if mode.lower() == "normal":
        mean, std = _column(table, "mean", values), _column(table, "std", values)
        scaled = (values - mean.astype(kind)) / (std + EPSILON).astype(kind)
        return np.where(mask, scaled, values)
    low, high = (_column(table, name, values) for name in _bounds(mode))
    scaled = 2 * (values - low.astype(kind)) / (high - low + EPSILON).astype(kind) - 1
    out = np.where(mask, np.clip(scaled, -1, 1), values)
    constant = _column(table, "min", values) == _column(table, "max", values)
    return np.where(constant, values.dtype.type(0), out)


def unnormalize(
    actions: ArrayLike,
    stats: Mapping[str, Any],
    mode: str = "bounds_q99",
    epsilon: float = 0.0,
) -> np.ndarray:
    """Map normalised actions [..., D] back to the robot's units, in float64.

    `epsilon` is added to the range: OpenVLA adds nothing, OpenVLA-OFT 1e-8.
    """
    table = _table(stats)
    values = np.asarray(actions, dtype=np.float64)
    mask = _mask(table, values)
    if mode.lower() == "normal":
        mean, std = _column(table, "mean", values), _column(table, "std", values)
        return np.where(mask, values * (std + EPSILON) + mean, values)
    low, high = (_column(table, name, values) for name in _bounds(mode))
    return np.where(mask, 0.5 * (values + 1) * (high - low + epsilon) + low, values)


def _table(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    """The statistics of one vector, also from a dataset's whole entry."""
    table: Mapping[str, Any] = stats.get("action", stats)
    return table


def _bounds(mode: str) -> tuple[str, str]:
    if mode.lower() not in MODES:
        raise UserError(f"expected a normalisation of {', '.join(MODES)}, found {mode!r}")
    return ("min", "max") if mode.lower() == "bounds" else ("q01", "q99")


def _column(table: Mapping[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    """float64 [D]: one statistic, such as q01, for each dimension of `values`."""
    if name not in table:
        raise UserError(f"expected {name!r} in the statistics, found {', '.join(table)}")
    try:
        column = np.asarray(table[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"expected numbers as {name!r} of the statistics, found {error}") from error
    if values.ndim == 0 or column.shape != values.shape[-1:]:
        raise UserError(
            f"expected values of {column.size} dimensions as in the statistics, found shape "
            f"{list(values.shape)}; use the statistics of this dataset"
        )
    return column


def _mask(table: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    if table.get("mask") is None:
        return np.ones(values.shape[-1:], dtype=bool)
    return _column({"mask": table["mask"]}, "mask", values).astype(bool)


@dataclass(frozen=True)
class ActionMetrics:
    """Share of right action tokens and mean |decoded difference|, in normalised units."""

    accuracy: float
    l1: float
    l1_per_dimension: tuple[float, ...]


def action_metrics(
    predicted: ArrayLike, target: ArrayLike, tokenizer: ActionTokenizer, action_dim: int
) -> ActionMetrics:
    """Compare predicted ids with the labels [n]; labels that are no action tokens do not count.

    The action labels are taken in order, `action_dim` to a step. Raises UserError where they do
    not make whole steps.
    """
    predicted, target = np.asarray(predicted).ravel(), np.asarray(target).ravel()
    # The comparison of the published training script: one id below the first action id is out.
    actions = target >= tokenizer.first_id
    predicted, target = predicted[actions], target[actions]
    if target.size == 0 or target.size % action_dim:
        raise UserError(
            f"expected action labels in steps of {action_dim}, found {target.size}; "
            "check the labels of the batch"
        )
    error = np.abs(tokenizer.decode(predicted) - tokenizer.decode(target))
    per_dimension = error.reshape(-1, action_dim).mean(axis=0)
    return ActionMetrics(
        float((predicted == target).mean()), float(error.mean()), tuple(per_dimension.tolist())
    )
