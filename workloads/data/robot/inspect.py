"""Figures of a dataset, as text and as JSON."""

from collections import Counter
from typing import Any

import numpy as np

from workloads.data.robot.episode import Dataset, Episode, Progress
from workloads.data.robot.names import dimension_name, joint_limits, unit
from workloads.data.robot.review import LIMIT_TOLERANCE, refusal, remarks
from workloads.data.tfrecord import DamagedRecord


def inspect(
    dataset: Dataset, verify: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """The contents of a dataset as a dictionary ready for JSON.

    Holds episodes, steps, lengths, cameras, instructions with the number of episodes, the range of
    every state and action dimension against the joint limits (CRANE-X7 only, rad), gaps, damage,
    remarks, and why a training would refuse the data (`refused`, None if it would not). With
    `verify` every image is read, without it only what opening found is reported; `progress` is
    called with the number of episodes read so far and of all.
    """
    episodes = [episode for episode in dataset if len(episode)]
    damage = dataset.verify(progress) if verify else list(dataset.damage)
    said = Counter(text for episode in episodes for text in episode.instructions)
    return {
        "path": str(dataset.path),
        "format": dataset.format,
        "name": dataset.name,
        "fps": dataset.fps,
        "measured_fps": dataset.measured_fps,
        "episodes": len(dataset),
        "empty_episodes": len(dataset) - len(episodes),
        "steps": int(dataset.lengths.sum()),
        "steps_per_episode": _spread(dataset.lengths),
        "drop_last_placeholder": dataset.options.drop_last_placeholder,
        "color_orders": list(dataset.color_orders),
        "cameras": _cameras(episodes, verify),
        "instructions": dict(said.most_common()),
        "instruction_origins": dict(dataset.origins),
        "text_features": list(dataset.text_keys),
        "unused": dict(dataset.unused),
        "actions": _ranges(dataset, "action", [episode.actions for episode in episodes]),
        "states": _ranges(dataset, "state", [episode.states for episode in episodes]),
        "gaps": sum(len(episode.gaps) for episode in episodes),
        "verified": verify,
        "damage_counts": dict(Counter(item.trouble for item in damage)),
        "damage": [item._asdict() for item in damage],
        "lost_steps": sum(item.lost for item in damage),
        "remarks": [remark._asdict() for remark in remarks(dataset)],
        "refused": refusal(dataset, damage),
    }


def _spread(lengths: np.ndarray) -> dict[str, float]:
    if len(lengths) == 0:
        return {}
    return {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
    }


def _cameras(episodes: list[Episode], each: bool) -> dict[str, dict[str, Any]]:
    """For each camera its number of episodes and the size of its first readable image.

    each: read every episode and list the other sizes, too.
    """
    found: dict[str, dict[str, Any]] = {}
    for episode in episodes:
        for camera in episode.cameras:
            facts = found.setdefault(camera, {"episodes": 0, "shape": None, "other_shapes": []})
            facts["episodes"] += 1
            if each or facts["shape"] is None:
                shape = _shape(episode, camera)
                facts["shape"] = facts["shape"] or shape
                if shape not in (None, facts["shape"], *facts["other_shapes"]):
                    facts["other_shapes"].append(shape)
    return found


def _shape(episode: Episode, camera: str) -> list[int] | None:
    """[H, W, 3] of the first image that can be read."""
    images = (_image(episode, camera, t) for t in range(len(episode)))
    return next((list(pixels.shape) for pixels in images if pixels is not None), None)


def _image(episode: Episode, camera: str, t: int) -> np.ndarray | None:
    try:
        return episode.image(camera, t)
    except DamagedRecord:  # verify reports it
        return None


def _ranges(dataset: Dataset, what: str, pieces: list[np.ndarray]) -> list[dict[str, Any]]:
    if len({piece.shape[1] for piece in pieces}) != 1:
        return []
    values = np.concatenate(pieces).astype(np.float64)
    size = values.shape[1]
    limits = joint_limits(dataset, size)
    rows = []
    for number, column in enumerate(values.T):
        q01, q99 = np.quantile(column, [0.01, 0.99])
        row: dict[str, Any] = {
            "name": dimension_name(dataset, what, size, number),
            "unit": unit(dataset, size),
            "min": float(column.min()),
            "q01": float(q01),
            "q99": float(q99),
            "max": float(column.max()),
            "mean": float(column.mean()),
            "std": float(column.std()),
        }
        if limits is not None:
            low, high = limits[number]
            beyond = (column < low - LIMIT_TOLERANCE) | (column > high + LIMIT_TOLERANCE)
            row |= {"limits": [low, high], "outside": int(beyond.sum())}
        rows.append(row)
    return rows
