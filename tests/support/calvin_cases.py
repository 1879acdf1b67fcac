"""Small CALVIN splits, with pictures that tell which frame they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.robot_data import picture

Spans = Sequence[tuple[int, int]]


def write_calvin(
    folder: Path,
    spans: Spans = ((3, 14), (8, 18), (30, 33)),
    recordings: Spans = ((0, 20), (28, 36)),
    dtype: type = np.float64,
) -> Path:
    """A split; the picture of frame n is that of step n."""
    folder.mkdir(parents=True)
    for start, end in recordings:
        for frame in range(start, end + 1):
            write_frame(folder, frame, dtype=dtype)
    np.save(folder / "ep_start_end_ids.npy", np.array(recordings, np.int64))
    tasks = [f"task_{number}" for number in range(len(spans))]
    annotate(folder, spans, [f"do {task}" for task in tasks], tasks)
    return folder


def write_frame(folder: Path, frame: int, dtype: type = np.float64, **changes: Any) -> Path:
    """One frame's file; changes: arrays in place of the usual ones, None leaves one out."""
    arrays: dict[str, Any] = {
        "rgb_static": picture(frame % 30, (20, 30)),
        "rgb_gripper": picture(frame % 30, (9, 7)),
        "robot_obs": np.full(15, frame, dtype),
        "rel_actions": np.full(7, frame / 100, dtype),
        "actions": np.zeros(7, dtype),
        "scene_obs": np.zeros(24, dtype),
    }
    kept = {name: value for name, value in (arrays | changes).items() if value is not None}
    file = folder / f"episode_{frame:07d}.npz"
    np.savez_compressed(file, **kept)
    return file


def annotate(folder: Path, spans: Any, texts: Any, tasks: Any) -> Path:
    """Write auto_lang_ann.npy as the recorders do: a pickled dictionary."""
    content = {
        "language": {"ann": texts, "task": tasks, "emb": np.zeros((len(spans), 1, 4), np.float32)},
        "info": {"episodes": [], "indx": spans},
    }
    file = folder / "lang_annotations/auto_lang_ann.npy"
    file.parent.mkdir(exist_ok=True)
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file
