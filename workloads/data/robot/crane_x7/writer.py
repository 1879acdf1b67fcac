"""Write demonstrations as CRANE-X7 TFRecords of schema v2, with colours marked as RGB."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from workloads.data import tf_example, tfrecord
from workloads.data.robot.crane_x7 import tfrecords
from workloads.data.robot.images import encode_jpeg
from workloads.errors import UserError

FILE_NAME = "episode_data.tfrecord"


def write_episode(
    folder: Path,
    states: np.ndarray,
    images: Mapping[str, Sequence[np.ndarray | bytes]],
    instruction: str | Sequence[str],
    *,
    actions: np.ndarray | None = None,
    dataset_name: str = tfrecords.DATASET_NAME,
    fps: float = tfrecords.FPS,
    quality: int = 95,
) -> Path:
    """Write one episode into `folder` and return its TFRecord.

    states [T, D] in rad, D = 0 for none; images: camera → T images uint8 [H, W, 3] RGB, written as
    JPEG, or encoded ones, written as they are; instruction: for all steps, or one a step. Actions
    [T, A] are by default the next state, and the last its own as a placeholder, as the robot's
    recorder has it. A meta.json beside it states the order of colours. Raises UserError
    where actions, images or instructions are not as many as the states.
    """
    vectors = np.asarray(states, np.float32)
    goals = _next_states(vectors) if actions is None else np.asarray(actions, np.float32)
    said = [instruction] * len(vectors) if isinstance(instruction, str) else instruction
    counts = {"instructions": len(said), "actions": len(goals)} | {
        name: len(frames) for name, frames in images.items()
    }
    for what, count in counts.items():
        if count != len(vectors):
            raise UserError(
                f"expected {len(vectors)} {what}, one a state, found {count}; give as many"
            )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"schema": "v2", "fps": fps, "num_steps": len(vectors), "image_color_order": "rgb"}
    (folder / "meta.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def records() -> Iterator[bytes]:
        for t, (state, action) in enumerate(zip(vectors, goals, strict=True)):
            features: dict[str, tf_example.Value] = {
                "observation/timestep": np.array([t]),
                "action": action,
                tfrecords.NAME_KEY: dataset_name,
                "task/language_instruction": said[t],
            }
            if len(state):
                features["observation/proprio"] = state
            for camera, frames in images.items():
                frame = frames[t]
                encoded = frame if isinstance(frame, bytes) else encode_jpeg(frame, quality)
                features[f"observation/image_{camera}"] = encoded
            yield tf_example.build(features)

    target = folder / FILE_NAME
    tfrecord.write(target, records())
    return target


def _next_states(states: np.ndarray) -> np.ndarray:
    return np.concatenate([states[1:], states[-1:]])
