"""dataset_statistics.json, which is part of every checkpoint and export of a policy."""

import json
import os
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from workloads.errors import UserError

STATISTICS = "dataset_statistics.json"
_FIX = "take the dataset_statistics.json that the model was trained with"
Statistics = dict[str, dict[str, Any]]


def write_statistics(folder: Path, statistics: Mapping[str, Any]) -> None:
    """Write the file in its usual format, atomically."""
    partial = folder / f"{STATISTICS}.partial"
    partial.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / STATISTICS)


def action_stats(norm_stats: Mapping[str, Any], unnorm_key: str | None) -> Mapping[str, Any]:
    """The action statistics of a dataset; raises UserError that lists known keys."""
    known = ", ".join(norm_stats) or "none"
    if unnorm_key is None and len(norm_stats) != 1:
        raise UserError(f"expected an unnorm_key, found none given; choose one of: {known}")
    key = next(iter(norm_stats)) if unnorm_key is None else unnorm_key
    if key not in norm_stats:
        raise UserError(f"expected an unnorm_key of the statistics, found {key!r}; known: {known}")
    entry = norm_stats[key]
    stats = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(stats, Mapping):
        raise UserError(f"expected action statistics of {key!r}, found none; {_FIX}")
    return stats


def action_size(stats: Mapping[str, Any]) -> int:
    """Size of an action by its statistics.

    Raises UserError where the statistics have no list q01.
    """
    low = stats.get("q01")
    if not isinstance(low, Sized) or isinstance(low, str):
        raise UserError(f"expected a list q01 in the statistics, found none; {_FIX}")
    return len(low)
