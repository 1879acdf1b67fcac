"""Frames and action curves of a dataset as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.names import dimension_name, joint_limits
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

_TILE = (160, 120)
_GAP = 6  # between tiles, and around all
_LINE = 16  # height of a line of text
_CURVES_AT_MOST = 40
_LIMIT_NEAR = 0.25  # of the range of the values: a limit this near to them is drawn
_STILL = 1e-6  # of a value: changes up to here are the rounding of float32
_LONGEST_LABEL = 150  # letters
# Colours that stand out on any image: neither black nor white.
_PAPER, _MOUNT, _BORDER, _INK, _SOFT = "#f4f4f2", "#c9ccd1", "#5b6067", "#16181b", "#5b6067"


def contact_sheet(
    dataset: Dataset, path: str | Path, episodes: int = 12, frames: int = 6
) -> list[Damage]:
    """Write a PNG with a row of frames, first to last, for each episode and camera.

    At most `episodes` episodes, evenly chosen. Images are as training sees them, so exchanged
    colours show; small ones are enlarged without smoothing. Above a row stand episode, camera and
    instruction, below each frame its step. Returns the damage met; damaged images are drawn as a
    red cross. Raises UserError where there are no images to show.
    """
    chosen = [dataset[int(n)] for n in evenly(np.flatnonzero(dataset.lengths), episodes)]
    rows = [(episode, camera) for episode in chosen for camera in episode.cameras]
    if not rows:
        raise UserError(f"{dataset.path}: expected images to show, found none; check the data")
    height = 2 * _LINE + _TILE[1] + _LINE + 2 * _GAP
    width = frames * (_TILE[0] + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height * len(rows) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    damage: list[Damage] = []
    for number, (episode, camera) in enumerate(rows):
        top = _GAP + number * height
        facts = f"{episode.name}    camera {camera}    {len(episode)} steps"
        pen.text((_GAP, top), f"{facts}    stored as {episode.color_order}", _INK, _font(12))
        said = _drawable(" → ".join(episode.instructions))
        pen.text((_GAP, top + _LINE), said, _SOFT, _font(12))
        for column, t in enumerate(evenly(np.arange(len(episode)), frames)):
            corner = (_GAP + column * (_TILE[0] + _GAP), top + 2 * _LINE)
            sheet.paste(_tile(episode, camera, int(t), damage), corner)
            below = (corner[0] + 2, corner[1] + _TILE[1] + 1)
            pen.text(below, f"step {int(t)}", _SOFT, _font(11))
    sheet.save(path, format="PNG")
    return damage


def evenly(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the items [n], the first and the last among them."""
    if len(items) <= count:
        return items
    return np.asarray(items[np.linspace(0, len(items) - 1, count).round().astype(int)])


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """The text, or where to read it: the built-in font has Latin letters only."""
    plain = text.replace("→", "->")
    if not all(ord(letter) < 0x250 for letter in plain):
        return "(instruction in other letters: see the page, or tatara data inspect)"
    return plain if len(plain) <= _LONGEST_LABEL else f"{plain[: _LONGEST_LABEL - 1]}…"


def _tile(episode: Episode, camera: str, t: int, damage: list[Damage]) -> Image.Image:
    """An image centred on a tile."""
    tile = Image.new("RGB", _TILE, _MOUNT)
    pen = ImageDraw.Draw(tile)
    try:
        tile_image = fitted(episode.image(camera, t), (_TILE[0] - 2, _TILE[1] - 2))
        corner = ((_TILE[0] - tile_image.width) // 2, (_TILE[1] - tile_image.height) // 2)
        tile.paste(tile_image, corner)
    except DamagedRecord as error:
        damage.append(error.damage)
        pen.line((0, 0, *_TILE), fill="red", width=3)
        pen.line((0, _TILE[1], _TILE[0], 0), fill="red", width=3)
    pen.rectangle((0, 0, _TILE[0] - 1, _TILE[1] - 1), outline=_BORDER)
    return tile


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The image, uint8 [H, W, 3], scaled to fit into `size` (width, height).

    Small images grow by whole numbers without smoothing, so that every pixel shows.
    """
    image = Image.fromarray(pixels)
    times = min(size[0] // image.width, size[1] // image.height)
    if times >= 2:
        grown = (times * image.width, times * image.height)
        return image.resize(grown, Image.Resampling.NEAREST)
    image.thumbnail(size)
    return image


def action_curves(dataset: Dataset, path: str | Path) -> None:
    """Write a PNG with one plot an action dimension: a curve an episode.

    The axis spans the values; q01 and q99, the range that is normalised, are dotted, and joint
    limits near the values dashed. CRANE-X7's joints are in rad, and in degrees on the
    right. Raises UserError where there are no steps to draw.
    """
    # A Figure of its own: pyplot would keep global state and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [dataset[int(n)] for n in evenly(np.flatnonzero(dataset.lengths), _CURVES_AT_MOST)]
    if not chosen:
        raise UserError(f"{dataset.path}: expected steps to draw, found none; run data inspect")
    size = chosen[0].actions.shape[1]
    columns = min(2, size)
    rows = -(-size // columns)
    figure = Figure(figsize=(6.4 * columns, 2.4 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    title = (
        f"{dataset.name}: actions of {len(chosen)} of {len(dataset)} episodes; dotted q01 and q99, "
        "between which they are normalised"
    )
    if joint_limits(dataset, size) is not None:
        title += "; dashed joint limits"
    figure.suptitle(title, fontsize="small")
    for number in range(size):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, dataset, chosen, number)
    figure.savefig(path, format="png", dpi=100)


def _draw(axes: Any, dataset: Dataset, episodes: list[Episode], number: int) -> None:
    size = episodes[0].actions.shape[1]
    values = np.concatenate([episode.actions[:, number] for episode in episodes])
    for episode in episodes:
        axes.plot(episode.rows - episode.rows[0], episode.actions[:, number], linewidth=0.8)
    for quantile in np.quantile(values.astype(np.float64), [0.01, 0.99]):
        axes.axhline(quantile, color="black", linestyle=":", linewidth=1)
    low, high = float(values.min()), float(values.max())
    room = high - low
    if room <= _STILL * max(abs(low), abs(high)):  # rounding, which would fill the plot
        room = abs(high) or 1.0
    bottom, top = low - 0.08 * room, high + 0.08 * room
    limits = joint_limits(dataset, size)
    for limit in () if limits is None else limits[number]:
        if low - _LIMIT_NEAR * room <= limit <= high + _LIMIT_NEAR * room:
            axes.axhline(limit, color="firebrick", linestyle="--", linewidth=1)
            bottom, top = min(bottom, limit - 0.03 * room), max(top, limit + 0.03 * room)
    axes.set_ylim(bottom, top)
    axes.set_title(dimension_name(dataset, "action", size, number), fontsize="small")
    axes.set_xlabel("step", fontsize="x-small")
    axes.tick_params(labelsize="x-small")
    if limits is not None:
        axes.set_ylabel("rad", fontsize="x-small")
        degrees = axes.secondary_yaxis("right", functions=(np.rad2deg, np.deg2rad))
        degrees.set_ylabel("deg", fontsize="x-small")
        degrees.tick_params(labelsize="x-small")
