"""Small datasets in each format, written for tests with pictures that tell which step they are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data import tf_example, tfrecord
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.data.robot.images import encode_jpeg, encode_png


def vectors(steps: int, seed: int = 0, size: int = 8) -> np.ndarray:
    """float32 [steps, size] within the joint limits."""
    values = np.random.default_rng(seed).uniform(-1.5, -0.1, (steps, size))
    values[:, -1] = -values[:, -1] / 2
    return values.astype(np.float32)


def picture(step: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Red grows with the step, green and blue are constant: survives JPEG within a few levels."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[...] = (10 + 8 * step, 60, 120)
    return pixels


def step_of(pixels: np.ndarray) -> int:
    """The step a picture was made for; fails where red and blue are exchanged."""
    mean = pixels.reshape(-1, 3).mean(0)
    assert abs(mean[1] - 60) < 6 and abs(mean[2] - 120) < 8, mean
    return round((mean[0] - 10) / 8)


def crane_episode(
    folder: Path,
    steps: int = 6,
    *,
    seed: int = 0,
    cameras: Sequence[str] = ("primary",),
    instruction: str = "pick up the cube",
    size: int = 8,
) -> Path:
    """One CRANE-X7 v2 episode; the last step is a placeholder."""
    frames = [picture(t) for t in range(steps)]
    images = {camera: frames for camera in cameras}
    return write_episode(folder, vectors(steps, seed, size), images, instruction)


def rewrite(file: Path, changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change features of some records of a TFRecord; None removes one."""
    records = []
    for number, record in enumerate(tfrecord.read(file)):
        features: dict[str, Any] = {k: f.values for k, f in tf_example.parse(record).items()}
        features |= changes.get(number, {})
        records.append(tf_example.build({k: v for k, v in features.items() if v is not None}))
    tfrecord.write(file, records)


def rlds(
    root: Path,
    lengths: Sequence[int] = (5, 3),
    *,
    split: str = "train",
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """One RLDS folder with a shard of len(lengths) episodes, as tfds writes them."""
    root.mkdir(parents=True, exist_ok=True)
    tensor = {"dtype": "float32", "encoding": "none"}
    observation = {
        "image": {"image": {"shape": {"dimensions": ["24", "32", "3"]}, "dtype": "uint8"}},
        "image_wrist": {"image": {"shape": {"dimensions": ["24", "32", "3"]}, "dtype": "uint8"}},
        "depth": {"image": {"shape": {"dimensions": ["24", "32", "1"]}, "dtype": "uint16"}},
        "state": {"tensor": tensor | {"shape": {"dimensions": ["4"]}}},
    }
    step = {
        "observation": {"featuresDict": {"features": observation}},
        "action": {"tensor": tensor | {"shape": {"dimensions": ["7"]}}},
        "gripper": {"tensor": {"dtype": "bool", "shape": {}}},
        "is_first": {"tensor": {"dtype": "bool", "shape": {}}},
        "language_instruction": {"text": {}},
    }
    steps = {"sequence": {"feature": {"featuresDict": {"features": step}}, "length": "-1"}}
    features = {"featuresDict": {"features": {"steps": steps}}}
    (root / "features.json").write_text(json.dumps(features))
    records = []
    for number, length in enumerate(lengths):
        values = rlds_features(number, length) | dict((changes or {}).get(number, {}))
        records.append(tf_example.build({k: v for k, v in values.items() if v is not None}))
    tfrecord.write(root / f"toy_arm-{split}.tfrecord-00000-of-00001", records)
    return root


def rlds_features(number: int, length: int) -> dict[str, Any]:
    frames = [picture(t) for t in range(length)]
    return {
        "steps/observation/image": [encode_jpeg(frame) for frame in frames],
        "steps/observation/image_wrist": [encode_png(frame) for frame in frames],
        "steps/observation/depth": [b"\x89PNG"] * length,
        "steps/observation/state": vectors(length, number, 4),
        "steps/action": vectors(length, number + 50, 7),
        "steps/gripper": np.arange(length) % 2,
        "steps/is_first": (np.arange(length) == 0).astype(np.int64),
        "steps/language_instruction": [f"do task {number}"] * length,
    }


def video(file: Path, frames: Sequence[np.ndarray], fps: int = 10, keyframes: int = 6) -> Path:
    """An mp4 with a key frame every few frames and frames that depend on later ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        height, width = frames[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": str(keyframes), "crf": "10", "bf": "2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def _features(video_camera: bool) -> dict[str, Any]:
    return {
        "observation.state": {"dtype": "float32", "shape": [8], "names": None},
        "action": {"dtype": "float32", "shape": [8], "names": None},
        "observation.images.top": {
            "dtype": "video" if video_camera else "image",
            "shape": [24, 32, 3],
        },
    }


def _table(lengths: Sequence[int], episodes: Sequence[int], fps: int) -> pa.Table:
    states = np.concatenate([vectors(n, e) for n, e in zip(lengths, episodes, strict=True)])
    frames = np.concatenate([np.arange(n) for n in lengths])
    return pa.table(
        {
            "observation.state": states.tolist(),
            "action": (states + 0.01).tolist(),
            "timestamp": pa.array((frames / fps).astype(np.float32)),
            "frame_index": frames,
            "episode_index": np.repeat(episodes, lengths),
            "index": np.arange(sum(lengths)),
            "task_index": np.repeat(np.asarray(episodes) % 2, lengths),
        }
    )


def lerobot_video_v3(root: Path, lengths: Sequence[int] = (9, 7, 12), fps: int = 10) -> Path:
    """LeRobot v3.0: all episodes in one parquet file and one video, one after the other."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "robot_type": "toy",
        "fps": fps,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(True),
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = pa.table({"task_index": [0, 1], "task": ["even", "odd"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    episodes = list(range(len(lengths)))
    table = _table(lengths, episodes, fps)
    pq.write_table(table, root / "data/chunk-000/file-000.parquet")
    starts = np.cumsum([0, *lengths])
    key = "videos/observation.images.top"
    rows = [
        {
            "episode_index": e,
            "tasks": ["odd" if e % 2 else "even"],
            "length": lengths[e],
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": int(starts[e]),
            "dataset_to_index": int(starts[e + 1]),
            f"{key}/chunk_index": 0,
            f"{key}/file_index": 0,
            f"{key}/from_timestamp": float(starts[e]) / fps,
            f"{key}/to_timestamp": float(starts[e + 1]) / fps,
        }
        for e in episodes
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    frames = [picture(t) for t in range(int(starts[-1]))]
    video(root / f"{key}/chunk-000/file-000.mp4", frames, fps)
    return root


def lerobot_video_v2(root: Path, lengths: Sequence[int] = (9, 7), fps: int = 10) -> Path:
    """LeRobot v2.1: a parquet file and a video for each episode."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    key = "observation.images.top"
    info = {
        "codebase_version": "v2.1",
        "robot_type": None,
        "fps": fps,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": _features(True),
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": 0, "task": "even"}, {"task_index": 1, "task": "odd"}]
    (root / "meta/tasks.jsonl").write_text("\n".join(json.dumps(row) for row in tasks))
    rows = [{"episode_index": e, "tasks": [], "length": n} for e, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for episode, length in enumerate(lengths):
        name = f"chunk-000/episode_{episode:06d}.parquet"
        pq.write_table(_table([length], [episode], fps), root / "data" / name)
        frames = [picture(t) for t in range(length)]
        video(root / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", frames, fps)
    return root
