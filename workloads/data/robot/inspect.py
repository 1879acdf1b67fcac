"""A data set at a glance: numbers for people and programs, frames and action curves as PNG."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME, JOINT_LIMITS, JOINTS
from workloads.data.robot.episode import Dataset, Episode, Progress
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

# Encoders end a little beyond the limits: this much is no finding (rad).
LIMIT_TOLERANCE = 1e-3

_TILE = (160, 120)
_LABEL_HEIGHT = 14
_CURVES_AT_MOST = 40


def inspect(
    dataset: Dataset, verify: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """What is in the data set, as a dictionary ready for JSON.

    Holds episodes, steps, lengths, cameras, instructions with the number of episodes, the range of
    every state and action dimension against the joint limits (CRANE-X7 only, rad), gaps and
    damage. With `verify` every picture is read, without it only what opening found is reported;
    `progress` is called with the number of episodes read so far and of all.
    """
    episodes = [episode for episode in dataset if len(episode)]
    damage = dataset.verify(progress) if verify else list(dataset.damage)
    return {
        "path": str(dataset.path),
        "format": dataset.format,
        "name": dataset.name,
        "fps": dataset.fps,
        "episodes": len(dataset),
        "empty_episodes": len(dataset) - len(episodes),
        "steps": int(dataset.lengths.sum()),
        "steps_per_episode": _spread(dataset.lengths),
        "drop_last_placeholder": dataset.options.drop_last_placeholder,
        "color_orders": list(dataset.color_orders),
        "cameras": _cameras(episodes),
        "instructions": dict(Counter(episode.instruction for episode in episodes).most_common()),
        "actions": _ranges(dataset, "actions", [episode.actions for episode in episodes]),
        "states": _ranges(dataset, "states", [episode.states for episode in episodes]),
        "gaps": sum(len(episode.gaps) for episode in episodes),
        "verified": verify,
        "damage_counts": dict(Counter(item.trouble for item in damage)),
        "damage": [item._asdict() for item in damage],
    }


def _spread(lengths: np.ndarray) -> dict[str, float]:
    if len(lengths) == 0:
        return {}
    return {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
    }


def _cameras(episodes: list[Episode]) -> dict[str, dict[str, Any]]:
    """Per camera the number of episodes that have it and the size of its first picture."""
    found: dict[str, dict[str, Any]] = {}
    for episode in episodes:
        for camera in episode.cameras:
            facts = found.setdefault(camera, {"episodes": 0, "shape": None})
            facts["episodes"] += 1
            if facts["shape"] is None:
                pixels = _picture(episode, camera, 0)
                facts["shape"] = None if pixels is None else list(pixels.shape)
    return found


def _picture(episode: Episode, camera: str, t: int) -> np.ndarray | None:
    try:
        return episode.image(camera, t)
    except DamagedRecord:  # verify reports it
        return None


def _ranges(dataset: Dataset, what: str, pieces: list[np.ndarray]) -> list[dict[str, Any]]:
    sizes = {piece.shape[1] for piece in pieces}
    if len(sizes) != 1:
        return []
    values = np.concatenate(pieces).astype(np.float64)
    limits = joint_limits(dataset, values.shape[1])
    rows = []
    for number, column in enumerate(values.T):
        row: dict[str, Any] = {
            "name": dimension_name(dataset, values.shape[1], number),
            "min": float(column.min()),
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


def joint_limits(dataset: Dataset, size: int) -> tuple[tuple[float, float], ...] | None:
    """The robot's limits per dimension in rad, None where the data is not of a CRANE-X7."""
    return JOINT_LIMITS if dataset.name == DATASET_NAME and size == len(JOINT_LIMITS) else None


def dimension_name(dataset: Dataset, size: int, number: int) -> str:
    """The joint's name where the robot is known, else the number."""
    known = joint_limits(dataset, size) is not None
    return JOINTS[number] if known else f"dimension {number}"


def contact_sheet(
    dataset: Dataset, path: str | Path, episodes: int = 12, frames: int = 6
) -> list[Damage]:
    """Write a PNG with a row of frames, first to last, for each episode and camera.

    At most `episodes` episodes, evenly chosen. Pictures are as training sees them, so exchanged
    colours show. Returns the damage met; damaged pictures are drawn as a red cross.
    """
    chosen = _evenly(np.flatnonzero(dataset.lengths), episodes)
    rows = [(dataset[int(n)], camera) for n in chosen for camera in dataset[int(n)].cameras]
    if not rows:
        raise UserError(f"{dataset.path}: expected pictures to show, found none; check the data")
    height = _TILE[1] + _LABEL_HEIGHT
    sheet = Image.new("RGB", (_TILE[0] * frames, height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    damage: list[Damage] = []
    for number, (episode, camera) in enumerate(rows):
        # The built-in font has Latin letters only: instructions stay in the numbers.
        label = f"{episode.name}  {camera}  {len(episode)} steps  stored {episode.color_order}"
        pen.text((2, number * height + 1), label, fill="black")
        for column, t in enumerate(_evenly(np.arange(len(episode)), frames)):
            tile = _tile(episode, camera, int(t), damage)
            sheet.paste(tile, (column * _TILE[0], number * height + _LABEL_HEIGHT))
    sheet.save(path, format="PNG")
    return damage


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the items, the first and the last among them."""
    if len(items) <= count:
        return items
    return np.asarray(items[np.linspace(0, len(items) - 1, count).round().astype(int)])


def _tile(episode: Episode, camera: str, t: int, damage: list[Damage]) -> Image.Image:
    try:
        picture = Image.fromarray(episode.image(camera, t))
    except DamagedRecord as error:
        damage.append(error.damage)
        tile = Image.new("RGB", _TILE, "lightgrey")
        pen = ImageDraw.Draw(tile)
        pen.line((0, 0, *_TILE), fill="red", width=3)
        pen.line((0, _TILE[1], _TILE[0], 0), fill="red", width=3)
        return tile
    picture.thumbnail(_TILE)
    return picture


def action_curves(dataset: Dataset, path: str | Path) -> None:
    """Write a PNG with one plot an action dimension: a curve an episode, joint limits dashed."""
    # A Figure of its own: pyplot would keep global state and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [dataset[int(n)] for n in _evenly(np.flatnonzero(dataset.lengths), _CURVES_AT_MOST)]
    if not chosen:
        raise UserError(f"{dataset.path}: expected steps to draw, found none; run data inspect")
    size = chosen[0].actions.shape[1]
    columns = min(2, size)
    rows = -(-size // columns)
    figure = Figure(figsize=(6 * columns, 2.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number in range(size):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, dataset, chosen, number)
    figure.savefig(path, format="png", dpi=100)


def _draw(axes: Any, dataset: Dataset, episodes: list[Episode], number: int) -> None:
    size = episodes[0].actions.shape[1]
    for episode in episodes:
        axes.plot(episode.rows - episode.rows[0], episode.actions[:, number], linewidth=0.8)
    limits = joint_limits(dataset, size)
    if limits is not None:
        for limit in limits[number]:
            axes.axhline(limit, color="grey", linestyle="--", linewidth=0.8)
    axes.set_title(dimension_name(dataset, size, number), fontsize="small")
    axes.set_xlabel("step", fontsize="x-small")
    if limits is not None:
        axes.set_ylabel("rad", fontsize="x-small")
