"""Statistics that actions are normalised by, in the form of `dataset_statistics.json`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workloads.data.robot.episode import Dataset
from workloads.errors import UserError

FILE_NAME = "dataset_statistics.json"


def statistics(
    dataset: Dataset,
    name: str | None = None,
    mask: Sequence[bool] | None = None,
    episodes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """{name: {action, proprio, num_transitions, num_trajectories}} over all steps.

    action and proprio (left out where the data has no states) hold mean, std (of the population),
    min, max, q01 and q99 (linear interpolation), a list of one number per dimension in the
    recorder's units; action also `mask` where one is given: false leaves a dimension as it is when
    normalising. `name` is the dataset's own by default, `episodes` chooses some, as for a split.
    Placeholder steps count as the dataset was opened. Raises UserError where no step is usable, or
    where `mask` has another length than an action.
    """
    numbers = range(len(dataset)) if episodes is None else episodes
    chosen = [episode for episode in (dataset[number] for number in numbers) if len(episode)]
    if not chosen:
        raise UserError(
            f"{dataset.path}: expected at least one usable step, found none; run data inspect"
        )
    actions = _joined(dataset, "actions", [episode.actions for episode in chosen])
    states = _joined(dataset, "states", [episode.states for episode in chosen])
    table: dict[str, Any] = {"action": describe(actions)}
    if states.shape[1]:
        table["proprio"] = describe(states)
    if mask is not None:
        if len(mask) != actions.shape[1]:
            raise UserError(
                f"expected a mask of {actions.shape[1]} values, one an action dimension, "
                f"found {len(mask)}; give one for each"
            )
        table["action"]["mask"] = [bool(value) for value in mask]
    table["num_transitions"] = len(actions)
    table["num_trajectories"] = len(chosen)
    return {name or dataset.name: table}


def describe(values: np.ndarray) -> dict[str, list[float]]:
    """float [N, D] → six lists of D numbers, summed in float64."""
    exact = values.astype(np.float64)
    rows = {
        "mean": exact.mean(0),
        "std": exact.std(0),
        "max": exact.max(0),
        "min": exact.min(0),
        "q01": np.quantile(exact, 0.01, axis=0),
        "q99": np.quantile(exact, 0.99, axis=0),
    }
    return {name: [float(value) for value in row] for name, row in rows.items()}


def write(dataset: Dataset, path: Path, **options: Any) -> dict[str, Any]:
    """Write `statistics(dataset, **options)` as JSON, with the order of colours found, whole."""
    table = statistics(dataset, **options)
    for entry in table.values():
        entry["color_order"] = list(dataset.color_orders)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return table


def _joined(dataset: Dataset, what: str, pieces: list[np.ndarray]) -> np.ndarray:
    sizes = sorted({piece.shape[1] for piece in pieces})
    if len(sizes) > 1:
        raise UserError(
            f"{dataset.path}: expected {what} of one size, found {sizes}; "
            "open episodes of different robots as datasets of their own"
        )
    return np.concatenate(pieces)
