"""Any data set to LeRobot v3.0, pictures as PNG inside parquet: nothing is lost on the way."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.data.robot.lerobot import layout
from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode, Progress
from workloads.data.robot.lerobot.stats import Described, PictureStats, VectorStats, total
from workloads.data.tfrecord import Damage, DamagedRecord, check_budget
from workloads.errors import UserError


@dataclass(frozen=True)
class Converted:
    """What was written: an episode with gaps becomes one for each of its runs."""

    path: Path
    episodes: int
    frames: int
    skipped: tuple[Damage, ...]  # steps left out because a picture cannot be read


def to_lerobot_v3(
    dataset: Dataset,
    out: str | os.PathLike[str],
    *,
    fps: float | None = None,
    cameras: Sequence[str] | None = None,
    size: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write a LeRobot v3.0 data set to the folder `out`, which appears when it is complete.

    Steps are those the data set was opened with. Timestamps in LeRobot are frame / fps without
    gaps, so an episode is cut wherever damaged records are missing. `cameras` are those that all
    episodes have, by default; `fps` is the data set's own; `progress` is called with the number of
    episodes written so far and of all. Raises UserError where `out` is not empty, fps is unknown,
    a camera's pictures differ in size, or more is damaged than the data set's budget allows;
    nothing is left then.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"expected an empty folder, found files in {target}; choose another")
    rate = fps or dataset.fps
    if rate is None:
        raise UserError(f"{dataset.path}: expected a frame rate, found none; give fps")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    writer = _Writer(partial, dataset, rate, tuple(cameras or dataset.cameras), size)
    try:
        for number, episode in enumerate(dataset):
            writer.add(episode)
            if progress is not None:
                progress(number + 1, len(dataset))
        converted = writer.finish(target)
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{target}: expected to write a data set, found {error}; name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return converted


class _Writer:
    def __init__(
        self,
        root: Path,
        dataset: Dataset,
        fps: float,
        cameras: tuple[str, ...],
        size: int | None,
    ) -> None:
        self.root = root
        self.size = size
        self.dataset = dataset
        self.fps = fps
        self.cameras = cameras
        self.tasks: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rows: list[dict[str, Any]] = []
        self.stats: list[dict[str, Described]] = []
        self.skipped: list[Damage] = []
        self.seen = int(dataset.lengths.sum()) + len(dataset.damage)
        self.frames = 0
        self._file = 0
        self._open: pq.ParquetWriter | None = None
        self._sizes: tuple[int, int] | None = None

    def add(self, episode: Episode) -> None:
        """Write the runs of sound steps of an episode, each as an episode."""
        encoded, statistics = self._pictures(episode)
        found, budget = [*self.dataset.damage, *self.skipped], self.dataset.options.damage_budget
        check_budget(found, self.seen, budget)
        sound = np.array([t for t in range(len(episode)) if t in encoded], np.int64)
        for run in _runs(episode.rows, sound):
            self._add_run(episode, run, encoded, statistics)

    def finish(self, target: Path) -> Converted:
        """Write the meta data."""
        if self._open is None or self._sizes is None:
            raise UserError(f"{self.dataset.path}: expected steps to convert, found none")
        self._open.close()
        meta = self.root / "meta"
        meta.mkdir(parents=True)
        info = layout.info(
            self.dataset, self._sizes, self.shapes, self.fps, len(self.rows), self.frames,
            len(self.tasks),
        )  # fmt: skip
        (meta / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        whole = {name: total([one[name] for one in self.stats]).as_json() for name in self.stats[0]}
        (meta / "stats.json").write_text(json.dumps(whole, indent=4), encoding="utf-8")
        layout.write_tasks(meta / "tasks.parquet", list(self.tasks))
        layout.write_episodes(meta / "episodes/chunk-000/file-000.parquet", self.rows, self.stats)
        return Converted(target, len(self.rows), self.frames, tuple(self.skipped))

    def _pictures(
        self, episode: Episode
    ) -> tuple[dict[int, dict[str, bytes]], dict[int, dict[str, np.ndarray]]]:
        """PNG and histogram by step and camera, for the steps whose pictures can all be read."""
        encoded: dict[int, dict[str, bytes]] = {}
        histograms: dict[int, dict[str, np.ndarray]] = {}
        for t in range(len(episode)):
            try:
                frames = {camera: self._frame(episode, camera, t) for camera in self.cameras}
            except DamagedRecord as error:
                self.skipped.append(error.damage)
                continue
            for camera, pixels in frames.items():
                self._check_shape(episode, camera, pixels.shape)
            encoded[t] = {camera: images.encode_png(p) for camera, p in frames.items()}
            histograms[t] = {camera: PictureStats.histogram(p) for camera, p in frames.items()}
        return encoded, histograms

    def _frame(self, episode: Episode, camera: str, step: int) -> np.ndarray:
        pixels = episode.image(camera, step)
        return pixels if self.size is None else images.resize(pixels, self.size)

    def _check_shape(self, episode: Episode, camera: str, shape: tuple[int, ...]) -> None:
        expected = self.shapes.setdefault(camera, shape)
        if shape != expected:
            raise UserError(
                f"{episode.file}: expected pictures of {camera} of {expected}, found {shape}; "
                "give one size to all (--size), or choose other cameras"
            )

    def _add_run(
        self,
        episode: Episode,
        run: np.ndarray,
        encoded: dict[int, dict[str, bytes]],
        histograms: dict[int, dict[str, np.ndarray]],
    ) -> None:
        columns = self._columns(episode, run)
        described: dict[str, Described] = {
            name: VectorStats(values) for name, values in columns.items()
        }
        cells: dict[str, list[dict[str, Any]]] = {}
        for camera in self.cameras:
            key = layout.camera_key(camera)
            described[key] = PictureStats([histograms[int(t)][camera] for t in run])
            cells[key] = [
                {"bytes": encoded[int(t)][camera], "path": f"frame-{frame:06d}.png"}
                for frame, t in enumerate(run)
            ]
        number = self._write(columns, cells)
        self.rows.append(
            {
                "episode_index": len(self.rows),
                "tasks": [episode.instruction],
                "length": len(run),
                "data/chunk_index": number // layout.CHUNK_SIZE,
                "data/file_index": number % layout.CHUNK_SIZE,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + len(run),
            }
        )
        self.stats.append(layout.in_order(described))
        self.frames += len(run)

    def _columns(self, episode: Episode, run: np.ndarray) -> dict[str, np.ndarray]:
        """Everything but pictures, [steps, size] each."""
        frames = np.arange(len(run), dtype=np.int64)
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        columns = {
            "observation.state": episode.states[run],
            "action": episode.actions[run],
            "timestamp": frames / self.fps,
            "frame_index": frames,
            "episode_index": np.full(len(run), len(self.rows), np.int64),
            "index": frames + self.frames,
            "task_index": np.full(len(run), task, np.int64),
        }
        return {name: values.reshape(len(run), -1) for name, values in columns.items()}

    def _write(self, columns: dict[str, np.ndarray], cells: dict[str, list[Any]]) -> int:
        """Append an episode and return the number of the file it went to."""
        sizes = (columns["observation.state"].shape[1], columns["action"].shape[1])
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


def _runs(rows: np.ndarray, sound: np.ndarray) -> list[np.ndarray]:
    """The sound steps, cut wherever the recording has a gap."""
    if len(sound) == 0:
        return []
    return np.split(sound, np.flatnonzero(np.diff(rows[sound]) != 1) + 1)
