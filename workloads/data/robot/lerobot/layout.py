"""The files of a LeRobot v3.0 dataset, field by field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data.robot.episode import Dataset
from workloads.data.robot.lerobot.stats import NAMES, Described

VERSION = "v3.0"
CHUNK_SIZE = 1000
DATA_FILE_MEGABYTES = 100
DATA_FILE_BYTES = DATA_FILE_MEGABYTES * 1024 * 1024
# Reading one image means reading those of its whole row group.
ROWS_AT_ONCE = 8
VIDEO_FILE_MEGABYTES = 200
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

_SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_VECTORS = ("observation.state", "action")
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CUBE = pa.list_(pa.list_(pa.list_(pa.float64())))


def camera_key(camera: str) -> str:
    """The feature of a camera."""
    return f"observation.images.{camera_name(camera)}"


def camera_name(camera: str) -> str:
    """A camera's name in LeRobot, which takes "/" for a level of its statistics."""
    return camera.strip("/").replace("/", ".")


def in_order(described: dict[str, Described]) -> dict[str, Described]:
    """Features in the order LeRobot lists them: vectors, images, scalars."""
    cameras = [name for name in described if name not in _VECTORS and name not in _SCALARS]
    vectors = [name for name in _VECTORS if name in described]
    return {name: described[name] for name in (*vectors, *cameras, *_SCALARS)}


def info(
    dataset: Dataset,
    sizes: tuple[int, int],
    shapes: dict[str, tuple[int, ...]],
    fps: float,
    episodes: int,
    frames: int,
    tasks: int,
    codec: str | None,
) -> dict[str, Any]:
    """The content of meta/info.json.

    sizes: of states (0 for none) and of actions; codec: of videos, None for images.
    """
    known = (dataset.state_names, dataset.action_names)
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [size], "names": _names(names, size)}
        for name, names, size in zip(_VECTORS, known, sizes, strict=True)
        if size
    }
    for camera, shape in shapes.items():
        features[camera_key(camera)] = {
            "dtype": "image" if codec is None else "video",
            "shape": list(shape),
            "names": ["height", "width", "channels"],
        }
        if codec is not None:
            features[camera_key(camera)]["info"] = _video_info(shape, fps, codec)
    for name, dtype in _SCALARS.items():
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return {
        "codebase_version": VERSION,
        "robot_type": dataset.name,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK_SIZE,
        "data_files_size_in_mb": DATA_FILE_MEGABYTES,
        "video_files_size_in_mb": VIDEO_FILE_MEGABYTES,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": None if codec is None else VIDEO_PATH,
        "features": features,
    }


def _names(known: tuple[str, ...] | None, size: int) -> list[str]:
    if known is not None and len(known) == size:
        return list(known)
    return [f"dimension_{number}" for number in range(size)]


def _video_info(shape: tuple[int, ...], fps: float, codec: str) -> dict[str, Any]:
    even = shape[0] % 2 == shape[1] % 2 == 0
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.channels": shape[2],
        "video.codec": codec,
        "video.pix_fmt": "yuv420p" if even else "yuv444p",
        "video.is_depth_map": False,
        "video.fps": int(fps) if float(fps).is_integer() else fps,
        "has_audio": False,
    }


def data_schema(states: int, actions: int, cameras: list[str]) -> pa.Schema:
    """The columns of a data file, with the types as the datasets library states them.

    cameras: those whose images are in the file.
    """
    sizes = {name: n for name, n in zip(_VECTORS, (states, actions), strict=True) if n}
    fields = [
        *(pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()),
        *(pa.field(key, _IMAGE) for key in cameras),
        *(pa.field(name, pa.type_for_alias(dtype)) for name, dtype in _SCALARS.items()),
    ]
    stated: dict[str, Any] = {
        name: {"feature": {"dtype": "float32", "_type": "Value"}, "length": size, "_type": "List"}
        for name, size in sizes.items()
    }
    stated |= {key: {"_type": "Image"} for key in cameras}
    stated |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in _SCALARS.items()}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": stated}})})


def array(
    values: np.ndarray | None, cells: list[dict[str, Any]] | None, kind: pa.DataType
) -> pa.Array:
    """A column of a data file, from vectors [steps, size], scalars [steps, 1] or images."""
    if values is None:
        return pa.array(cells, kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), kind.list_size)
    return pa.array(values.ravel().astype(kind.to_pandas_dtype()))


def write_tasks(file: Path, tasks: list[str]) -> None:
    """meta/tasks.parquet: a data frame whose index is the text, so its metadata is stated too."""
    index = "__index_level_0__"
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), pa.int64()),
            index: pa.array(tasks, pa.large_string()),
        }
    )
    number = {"name": "task_index", "field_name": "task_index", "metadata": None}
    text = {"name": None, "field_name": index, "metadata": None}
    names = {"name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}}
    facts = {
        "index_columns": [index],
        "column_indexes": [names | {"pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [
            number | {"pandas_type": "int64", "numpy_type": "int64"},
            text | {"pandas_type": "unicode", "numpy_type": "object"},
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(facts)}), file)


def write_episodes(
    file: Path, rows: list[dict[str, Any]], stats: list[dict[str, Described]]
) -> None:
    """meta/episodes: where each episode lies, its tasks and its statistics."""
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        kind = pa.int64()
        if name == "tasks":
            kind = pa.list_(pa.string())
        elif name.endswith("_timestamp"):
            kind = pa.float64()
        columns[name] = pa.array([row[name] for row in rows], kind)
    for feature in stats[0]:
        tables = [episode[feature].as_json() for episode in stats]
        for statistic in NAMES:
            values = [table[statistic] for table in tables]
            columns[f"stats/{feature}/{statistic}"] = pa.array(values, _kind(feature, statistic))
    zeros = pa.array([0] * len(rows), pa.int64())
    columns |= {"meta/episodes/chunk_index": zeros, "meta/episodes/file_index": zeros}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, compression="snappy")


def _kind(feature: str, statistic: str) -> pa.DataType:
    whole = _SCALARS.get(feature) == "int64" and statistic in ("min", "max")
    if statistic == "count" or whole:
        return pa.list_(pa.int64())
    return pa.list_(pa.float64()) if feature in _VECTORS or feature in _SCALARS else _CUBE
