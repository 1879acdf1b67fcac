"""The best of a run's checkpoints, by its scores on held-out rows."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run.directory import Run, rows_in

_EARNED = "held_out/"


def best_step(run: Run, saved: Collection[int]) -> int | None:
    """The saved step with the lowest held-out loss, or else the one with the highest rewards.

    Of equal losses the first counts, of equal rewards the last. Values that are no numbers do not
    count. None where no saved step was evaluated.
    """
    weights = _weights(run)
    losses, earned = {}, {}
    for row in rows_in(run.evaluations):
        if (step := row.get("step")) not in saved:
            continue
        if _is_number(row.get("eval_loss")):
            losses[step] = row["eval_loss"]
        names = [name for name in row if name.startswith(_EARNED) and _is_number(row[name])]
        if names:
            earned[step] = sum(
                weights.get(name.removeprefix(_EARNED), 1.0) * row[name] for name in names
            )
    if losses:
        return min(losses, key=lambda step: (losses[step], step))
    return max(earned, key=lambda step: (earned[step], step)) if earned else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _weights(run: Run) -> Mapping[str, float]:
    """Each reward's weight by the run's settings."""
    try:
        rewards = read_json(run.path / "config.json").get("rewards") or {}
    except (OSError, UserError):
        return {}
    return {reward["name"]: reward["weight"] for reward in rewards.get("functions") or ()}
