"""Converts any dataset to LeRobot v3.0: images inside parquet as they were, or as videos."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data.robot.converting import (
    Converted,
    PreparedEpisode,
    Recipe,
    check_shapes,
    prepared_episodes,
    whole_folder,
)
from workloads.data.robot.episode import Dataset, Episode, Progress
from workloads.data.robot.lerobot import layout
from workloads.data.robot.lerobot.encode import Codec
from workloads.data.robot.lerobot.stats import Described, ImageStats, VectorStats, total
from workloads.data.tfrecord import Damage, check_budget
from workloads.errors import UserError


def to_lerobot_v3(
    dataset: Dataset,
    out: str | os.PathLike[str],
    *,
    fps: float | None = None,
    cameras: Sequence[str] | None = None,
    size: int | None = None,
    video: Codec | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write a LeRobot v3.0 dataset to the folder `out`, which appears when it is complete.

    Steps are those the dataset was opened with. Timestamps in LeRobot are frame / fps without
    gaps, so an episode is cut wherever damaged records are missing. `cameras` are those that all
    episodes have, by default; `fps` is the dataset's own; `size` makes squares of images; `video`
    writes them as mp4, which loses a little, in place of their own bytes or PNG; `progress` is
    called with the number of episodes written so far and of all. Raises UserError where `out` is
    not empty, fps is unknown or contradicted by the data, a camera's images differ in size, or
    more is damaged than the dataset's budget allows; nothing is left then.
    """
    rate = rate_of(dataset, fps)
    chosen = tuple(cameras or dataset.cameras)
    if len({layout.camera_key(camera) for camera in chosen}) < len(chosen):
        raise UserError(
            f"{dataset.path}: expected cameras whose names differ with '.' for '/', found "
            f"{', '.join(chosen)}; choose some with --cameras"
        )
    with whole_folder(Path(out)) as folder:
        recipe = Recipe(chosen, size, video, rate, folder / "encoding")
        writer = _Writer(folder, dataset, recipe)
        for number, prepared in enumerate(prepared_episodes(dataset, recipe, workers)):
            writer.add(prepared)
            if progress is not None:
                progress(number + 1, len(dataset))
        return writer.finish(Path(out))


def rate_of(dataset: Dataset, fps: float | None) -> float:
    """The frame rate to write, in steps per second.

    Raises UserError where nothing states one, or where `fps` and the timestamps disagree.
    """
    if fps is None and dataset.rates_differ:
        raise UserError(
            f"{dataset.path}: expected one frame rate, found {dataset.fps:g} Hz stated and "
            f"{dataset.measured_fps:g} Hz by the timestamps; choose one with --fps"
        )
    rate = fps or dataset.fps or dataset.measured_fps
    if rate is None:
        raise UserError(f"{dataset.path}: expected a frame rate, found none; give --fps")
    return rate


class _Writer:
    def __init__(self, root: Path, dataset: Dataset, recipe: Recipe) -> None:
        self.root = root
        self.dataset = dataset
        self.recipe = recipe
        self.tasks: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rows: list[dict[str, Any]] = []
        self.stats: list[dict[str, Described]] = []
        self.skipped: list[Damage] = []
        self.seen = int(dataset.lengths.sum()) + sum(item.lost for item in dataset.damage)
        self.frames = 0
        self.kept = 0
        self._file = 0
        self._open: pq.ParquetWriter | None = None
        self._sizes: tuple[int, int] | None = None

    def add(self, prepared: PreparedEpisode) -> None:
        """Write the runs of sound steps of an episode, each as an episode."""
        self.skipped += prepared.skipped
        self.kept += prepared.kept
        found, budget = [*self.dataset.damage, *self.skipped], self.dataset.options.damage_budget
        check_budget(found, self.seen, budget)
        check_shapes(prepared.episode.file, self.shapes, prepared.shapes)
        self.shapes |= prepared.shapes
        for at, run in enumerate(prepared.runs):
            self._add_run(prepared, at, run)

    def finish(self, target: Path) -> Converted:
        """Write the meta data. Raises UserError where no step was written."""
        if self._open is None or self._sizes is None:
            raise UserError(
                f"{self.dataset.path}: expected steps to convert, found none; run data inspect"
            )
        self._open.close()
        meta = self.root / "meta"
        meta.mkdir(parents=True)
        info = layout.info(
            self.dataset, self._sizes, self.shapes, self.recipe.fps, len(self.rows), self.frames,
            len(self.tasks), self.recipe.video,
        )  # fmt: skip
        (meta / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        whole = {
            name: total([stat[name] for stat in self.stats]).as_json() for name in self.stats[0]
        }
        (meta / "stats.json").write_text(json.dumps(whole, indent=4), encoding="utf-8")
        layout.write_tasks(meta / "tasks.parquet", list(self.tasks))
        layout.write_episodes(meta / "episodes/chunk-000/file-000.parquet", self.rows, self.stats)
        if self.recipe.video is not None:
            self.recipe.folder.rmdir()
        return Converted(target, len(self.rows), self.frames, tuple(self.skipped), self.kept)

    def _add_run(self, prepared: PreparedEpisode, at: int, run: np.ndarray) -> None:
        episode = prepared.episode
        columns = self._columns(episode, run)
        described: dict[str, Described] = {
            name: VectorStats(values) for name, values in columns.items()
        }
        cells: dict[str, list[dict[str, Any]]] = {}
        for camera in self.recipe.cameras:
            key = layout.camera_key(camera)
            described[key] = ImageStats([prepared.histograms[int(t)][camera] for t in run])
            if self.recipe.video is None:
                cells[key] = [
                    _cell(prepared.encoded[int(t)][camera], frame) for frame, t in enumerate(run)
                ]
        number = self._write(columns, cells)
        said = [episode.instruction_at(int(t)) for t in run]
        row = {
            "episode_index": len(self.rows),
            "tasks": list(dict.fromkeys(said)),
            "length": len(run),
            "data/chunk_index": number // layout.CHUNK_SIZE,
            "data/file_index": number % layout.CHUNK_SIZE,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + len(run),
        }
        if self.recipe.video is not None:
            row |= self._place_videos(prepared.videos[at], len(run))
        self.rows.append(row)
        self.stats.append(layout.in_order(described))
        self.frames += len(run)

    def _place_videos(self, files: dict[str, Path], length: int) -> dict[str, Any]:
        """Move an episode's videos to their final names; each is its own file."""
        chunk, number = divmod(len(self.rows), layout.CHUNK_SIZE)
        places: dict[str, Any] = {}
        for camera, file in files.items():
            key = layout.camera_key(camera)
            name = layout.VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=number)
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, self.root / name)
            places |= {
                f"videos/{key}/chunk_index": chunk,
                f"videos/{key}/file_index": number,
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": length / self.recipe.fps,
            }
        return places

    def _columns(self, episode: Episode, run: np.ndarray) -> dict[str, np.ndarray]:
        """All columns except images, [steps, size] each."""
        frames = np.arange(len(run), dtype=np.int64)
        said = [episode.instruction_at(int(t)) for t in run]
        columns = {
            "observation.state": episode.states[run],
            "action": episode.actions[run],
            "timestamp": frames / self.recipe.fps,
            "frame_index": frames,
            "episode_index": np.full(len(run), len(self.rows), np.int64),
            "index": frames + self.frames,
            "task_index": np.array([self.tasks.setdefault(s, len(self.tasks)) for s in said]),
        }
        if not episode.states.shape[1]:
            del columns["observation.state"]
        return {name: values.reshape(len(run), -1) for name, values in columns.items()}

    def _write(self, columns: dict[str, np.ndarray], cells: dict[str, list[Any]]) -> int:
        """Append an episode and return the number of its file."""
        states = columns.get("observation.state")
        sizes = (0 if states is None else states.shape[1], columns["action"].shape[1])
        if self._sizes not in (None, sizes):
            raise UserError(
                f"{self.dataset.path}: expected states and actions of {self._sizes}, found {sizes}"
            )
        self._sizes = sizes
        schema = layout.data_schema(*sizes, list(cells))
        file = self._data_file(self._file)
        if self._open is not None and file.stat().st_size >= layout.DATA_FILE_BYTES:
            self._open.close()
            self._open = None
            self._file += 1
            file = self._data_file(self._file)
        if self._open is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._open = pq.ParquetWriter(file, schema, compression="snappy")
        arrays = [layout.array(columns.get(f.name), cells.get(f.name), f.type) for f in schema]
        table = pa.Table.from_arrays(arrays, schema=schema)
        self._open.write_table(table, row_group_size=layout.ROWS_AT_ONCE)
        return self._file

    def _data_file(self, number: int) -> Path:
        chunk, file = divmod(number, layout.CHUNK_SIZE)
        return self.root / layout.DATA_PATH.format(chunk_index=chunk, file_index=file)


def _cell(encoded: bytes, frame: int) -> dict[str, Any]:
    """An image in a data file, under the name that LeRobot gives all: readers go by the bytes."""
    return {"bytes": encoded, "path": f"frame-{frame:06d}.png"}
