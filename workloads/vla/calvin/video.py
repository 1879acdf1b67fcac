"""Videos of sequences: GIF, which every page shows, or MP4."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from workloads.vla.calvin.rollout import SequenceRollout
from workloads.vla.calvin.sequences import Sequence
from workloads.vla.calvin.tasks import TASKS

FPS = 30  # of the simulator
_GIF_EVERY = 3  # frames; 10 a second
_WORDS, _LINE = 32, 12  # characters of a line below an image, and its height in pixels
_SOLVED, _FAILED = (20, 130, 50), (190, 40, 40)


def write_video(rollout: SequenceRollout, sequence: Sequence, file: Path, kind: str) -> Path:
    """Write the static camera's images with the task's text below; returns the file.

    The last image of each task shows its result. file: without its ending.
    """
    frames = list(_captioned(rollout, sequence))
    target = file.with_suffix(f".{kind}")
    if kind == "mp4":
        _write_mp4(frames, target)
    else:
        ends = set(np.cumsum([steps + 1 for steps in rollout.steps]) - 1)
        kept = [frame for at, frame in enumerate(frames) if at % _GIF_EVERY == 0 or at in ends]
        kept[0].save(
            target, save_all=True, append_images=kept[1:], duration=1000 * _GIF_EVERY // FPS, loop=0
        )
    return target


def _captioned(rollout: SequenceRollout, sequence: Sequence) -> list[Image.Image]:
    frames = []
    images = iter(rollout.images)
    for number, steps in enumerate(rollout.steps):
        text = textwrap.fill(TASKS[sequence.sequence[number]].instruction, _WORDS)
        for step in range(steps + 1):
            image = next(images)
            height, width = image.shape[:2]
            canvas = Image.new("RGB", (width, height + 2 * _LINE), "white")
            canvas.paste(Image.fromarray(image), (0, 0))
            solved = number < rollout.solved
            colour = "black" if step < steps else _SOLVED if solved else _FAILED
            ImageDraw.Draw(canvas).text((2, height), text, fill=colour, spacing=0)
            frames.append(canvas)
    return frames


def _write_mp4(frames: list[Image.Image], target: Path) -> None:
    import av

    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
