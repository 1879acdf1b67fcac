"""Frames and action curves of a dataset as PNG files, for people."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.names import dimension_name, joint_limits
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

_TILE = (160, 120)
_LABEL_HEIGHT = 14
_CURVES_AT_MOST = 40


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
    axes.set_title(dimension_name(dataset, "action", size, number), fontsize="small")
    axes.set_xlabel("step", fontsize="x-small")
    if limits is not None:
        axes.set_ylabel("rad", fontsize="x-small")
