"""Refuses datasets that are incompatible with each other or with the profile's head."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workloads.data.robot import Dataset
from workloads.data.robot.names import dimension_name
from workloads.errors import UserError
from workloads.vla.config import VlaConfig
from workloads.vla.statistics import Statistics

if TYPE_CHECKING:
    from workloads.vla.data.prepare import Part


def check_alike(config: VlaConfig, parts: Sequence["Part"]) -> None:
    """Raise UserError unless sizes of actions and used states and numbers of cameras agree."""
    shapes = {}
    for part in parts:
        first = part.dataset[part.episodes[0]]
        states = first.states.shape[1] if config.state_setting else 0
        shape = (first.actions.shape[1], states, len(part.cameras))
        shapes[shape] = str(part.dataset.path)
        if len(part.places) == 0:
            of_head = config.action_head.is_policy_head
            name, wanted = (
                ("data.window", config.window) if of_head else ("action_head.chunk", config.chunk)
            )
            longest = part.dataset.lengths[list(part.episodes)].max()
            raise UserError(
                f"{part.dataset.path}: expected steps to train on, found none: {name} is {wanted}, "
                f"and the longest episode has {longest} steps; lower {name}"
            )
    if len(shapes) > 1:
        found = "; ".join(f"{path}: {shape}" for shape, path in shapes.items())
        raise UserError(
            "data.mixed_with: expected actions, states and cameras of one number each, found "
            f"{found}"
        )
    for part in parts[1:]:
        _check_order(config, parts[0].dataset, part.dataset)


def _check_order(config: VlaConfig, first: Dataset, other: Dataset) -> None:
    """Raise UserError where two datasets have the same joints in another order."""
    for what in ("action", "state") if config.state_setting else ("action",):
        mine, theirs = (
            dataset.action_names if what == "action" else dataset.state_names
            for dataset in (first, other)
        )
        if mine and theirs and mine != theirs and set(mine) == set(theirs):
            raise UserError(
                f"data.mixed_with: expected the {what}s of {other.path} in the order of "
                f"{first.path}, {', '.join(mine)}, found {', '.join(theirs)}; put them in one "
                "order with action_parts of that dataset, or write it again"
            )


def check_states(config: VlaConfig, parts: Sequence["Part"]) -> None:
    """Raise UserError where a head takes the robot's state and the data have none."""
    setting = config.state_setting
    for part in parts if setting else ():
        if not part.dataset[part.episodes[0]].states.shape[1]:
            raise UserError(
                f"{part.dataset.path}: expected states for {setting}, found none in the "
                f"data; set data.state_keys, or {setting}=false"
            )


def check_head(config: VlaConfig, parts: Sequence["Part"]) -> None:
    """Raise UserError where a policy head's settings contradict the data."""
    head, first = config.action_head, parts[0]
    size = first.dataset[first.episodes[0]].actions.shape[1]
    if head.is_policy_head and head.size not in (None, size):
        raise UserError(
            f"action_head.size: expected {size}, the numbers of an action of {first.dataset.path}, "
            f"found {head.size}; correct it, or leave it out"
        )
    if head.is_policy_head and head.gripper and size < 2:
        raise UserError(
            f"action_head.gripper: expected actions of an arm and a gripper, found {size} number; "
            "set action_head.gripper=false"
        )
    for camera in config.data.shift or ():
        if camera not in first.cameras:
            raise UserError(
                f"data.shift: expected cameras that are used, {', '.join(first.cameras)}, found "
                f"{camera!r}; correct it, or data.cameras"
            )


def check_tokens(parts: Sequence["Part"], statistics: Statistics) -> None:
    """Raise UserError for unnormalised actions outside of -1 to 1, the range of action tokens."""
    for part in parts:
        mask = statistics[part.name]["action"].get("mask")
        if mask is None:
            continue
        actions = np.concatenate([part.dataset[number].actions for number in part.episodes])
        for number, column in enumerate(actions.T):
            low, high = float(column.min()), float(column.max())
            if not mask[number] and (low < -1 or high > 1):
                name = dimension_name(part.dataset, "action", actions.shape[1], number)
                raise UserError(
                    f"data.action_mask: expected action {name}, which is not normalised, within "
                    f"-1 to 1, which is what action tokens hold, found {low:g} to {high:g}; "
                    f"set true at dimension {number}, or use action_head.kind=oft with decode=l1"
                )


def check_numbers(where: str, entry: Any, what: str, size: int | None) -> None:
    """Raise UserError unless statistics for normalisation have `size` numbers each; None: any.

    A mask, where there is one, has to have as many values.
    """
    numbers = entry.get(what) if isinstance(entry, dict) else None
    table = numbers if isinstance(numbers, dict) else {}
    fix = "name the dataset's own statistics, or leave out data.statistics"
    for key in ("min", "max", "q01", "q99", *(["mask"] if table.get("mask") is not None else [])):
        found = table.get(key)
        if not isinstance(found, list) or (size is not None and len(found) != size):
            wanted = "a list of" if size is None else f"{size}"
            there = f"{len(found)}" if isinstance(found, list) else "none"
            raise UserError(
                f"{where}.{key}: expected {wanted} numbers, one a dimension of the data, found "
                f"{there}; {fix}"
            )
        odd = [n for n in found if not isinstance(n, int | float) or not math.isfinite(n)]
        if odd:
            raise UserError(f"{where}.{key}: expected finite numbers, found {odd[0]!r}; {fix}")


def without_evaluation(config: VlaConfig, is_held_out: bool) -> list[str]:
    """The line that tells that nothing can be evaluated although the profile says when."""
    if is_held_out or not (config.evaluation.every_steps or config.evaluation.before):
        return []
    return [
        "no episode is held out, so that nothing is evaluated: evaluation.every_steps and "
        "evaluation.before have no effect; raise data.eval_share, or add episodes"
    ]
