"""An image of rollouts: a row for each scene with its frames, instruction and result."""

from pathlib import Path

from PIL import Image, ImageDraw

from workloads.vla.reach.closed_loop import REACHED, SceneRollouts
from workloads.vla.reach.judge import TaskVerdict
from workloads.vla.reach.scene import Scene

_LABEL = 150
_GAP = 4
_WON, _LOST = (20, 130, 50), (190, 40, 40)


def draw(verdict: TaskVerdict, folder: Path) -> Path:
    """Write the trained policy's first scenes as PNG."""
    rows = [
        _row(scene, verdict.rollouts, number)
        for number, scene in enumerate(verdict.scenes[: len(verdict.rollouts.images)])
    ]
    height = rows[0].height + _GAP
    sheet = Image.new("RGB", (rows[0].width, height * len(rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * height))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{verdict.task}.png"
    sheet.save(target, format="PNG")
    return target


def _row(scene: Scene, rollouts: SceneRollouts, number: int) -> Image.Image:
    frames = rollouts.images[number]
    size = frames.shape[1]
    row = Image.new("RGB", (_LABEL + (size + _GAP) * len(frames), size), "white")
    pen = ImageDraw.Draw(row)
    won, off = bool(rollouts.won[number]), 100 * float(rollouts.distances[number])
    pen.text((_GAP, size // 2 - 24), scene.instruction, fill="black")
    pen.text((_GAP, size // 2 - 8), "reached" if won else "missed", fill=_WON if won else _LOST)
    pen.text((_GAP, size // 2 + 8), f"{off:.1f} cm off, {100 * REACHED:.0f} allowed", fill="grey")
    for column, frame in enumerate(frames):
        row.paste(Image.fromarray(frame), (_LABEL + column * (size + _GAP), 0))
    return row
