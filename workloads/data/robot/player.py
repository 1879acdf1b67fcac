"""One HTML file that plays episodes: frames with a slider, and actions beside them."""

import base64
import html
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workloads.data.robot.drawing import evenly
from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.names import dimension_name, joint_limits
from workloads.data.tfrecord import DamagedRecord
from workloads.errors import UserError

_LARGEST = 320  # pixels of an image's longer side
_QUALITY = 88


def player_page(dataset: Dataset, path: str | Path, episodes: int = 8, frames: int = 120) -> None:
    """Write an HTML page that plays episodes and frames, evenly chosen, up to these numbers.

    The page is one file that loads nothing from elsewhere. Images are as training sees them, at
    most 320 pixels wide or high. Raises UserError where there are no steps to show.
    """
    chosen = [dataset[int(n)] for n in evenly(np.flatnonzero(dataset.lengths), episodes)]
    if not chosen:
        raise UserError(f"{dataset.path}: expected steps to show, found none; run data inspect")
    size = chosen[0].actions.shape[1]
    limits = joint_limits(dataset, size)
    facts = {
        "names": [dimension_name(dataset, "action", size, number) for number in range(size)],
        "ranges": _ranges(chosen),
        "unit": "rad" if limits is not None else "",
        "fps": dataset.fps or dataset.measured_fps or 10,
        "episodes": [_as_dict(episode, frames) for episode in chosen],
    }
    title = f"{dataset.name}: {len(chosen)} of {len(dataset)} episodes"
    template = resources.files("workloads.data.robot").joinpath("player.html")
    page = template.read_text(encoding="utf-8")
    # A text of the data may hold anything, even "</script>".
    content = json.dumps(facts, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    page = page.replace("{{title}}", html.escape(title)).replace("{{facts}}", content)
    Path(path).write_text(page, encoding="utf-8")


def _ranges(episodes: list[Episode]) -> list[list[float]]:
    """The least and the greatest value of every action dimension."""
    values = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    return [[float(column.min()), float(column.max())] for column in values.T]


def _as_dict(episode: Episode, frames: int) -> dict[str, Any]:
    steps = evenly(np.arange(len(episode)), frames)
    return {
        "name": episode.name,
        "steps": len(episode),
        "said": [episode.instruction_at(int(t)) for t in steps],
        "shown": steps.tolist(),
        "actions": [[float(f"{value:.6g}") for value in row] for row in episode.actions],
        "images": {
            camera: [_jpeg(episode, camera, int(t)) for t in steps] for camera in episode.cameras
        },
    }


def _jpeg(episode: Episode, camera: str, t: int) -> str | None:
    """The image in base64; None where it cannot be read."""
    try:
        image = Image.fromarray(episode.image(camera, t))
    except DamagedRecord:
        return None
    image.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    # Colours at full width: small images are enlarged on the page.
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
