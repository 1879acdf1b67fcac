"""Decoded, resized frames of a dataset in a memory map: decoding costs the first epoch only.

Two files: the frames, uint8, one after the other, and a checksum for each, 0 where there is none
yet. Any number of processes of a machine read and fill them at once: a frame is written before its
checksum, and a frame whose checksum differs, as after a crash of the machine, is decoded again. The
page cache keeps used frames in memory and drops them under pressure.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workloads.data.robot.episode import Dataset

_FRAMES, _SUMS = "frames.u8", "checksums.u4"
_VERSION = 1


class FrameCache:
    """Frames uint8 [H, W, 3] by number; picklable: every process maps the files itself."""

    def __init__(self, folder: Path, count: int, shape: tuple[int, int, int]) -> None:
        """folder: of the files, created if missing; they are sparse and take only as much disk as
        is filled."""
        self.folder = folder
        self.count = count
        self.shape = shape
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._file = -1  # to write to, open while the maps are
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in ((_FRAMES, self.size), (_SUMS, 4 * count)):
            # Several ranks do this at once: the same length each, and nothing is cut off.
            with open(folder / name, "ab") as file:
                if file.tell() < size:
                    file.truncate(size)
                if name == _SUMS:  # a write to a memory map cannot report a full disk
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self.count * int(np.prod(self.shape))

    def get(self, number: int, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The frame, uint8 [H, W, 3], from the cache, else what `load` returns.

        What `load` raises goes through.
        """
        frames, sums = self._mapped()
        wanted = int(sums[number])
        if wanted:
            kept = np.array(frames[number])
            if _checksum(kept) == wanted:
                return kept
        pixels = np.ascontiguousarray(load())
        # One call: a store to the map would fault in every page of the frame by itself.
        if self._write(pixels, number * pixels.nbytes):
            sums[number] = _checksum(pixels)
        return pixels

    def _write(self, pixels: np.ndarray, place: int) -> bool:
        """Write a frame and return whether that succeeded; a full disk costs time only."""
        try:
            return os.pwrite(self._file, pixels.data, place) == pixels.nbytes
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False

    @property
    def filled(self) -> int:
        """How many frames there are."""
        return int(np.count_nonzero(self._mapped()[1]))

    def _mapped(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            shape = (self.count, *self.shape)
            frames = np.memmap(self.folder / _FRAMES, np.uint8, "r", shape=shape)
            sums = np.memmap(self.folder / _SUMS, np.uint32, "r+", shape=(self.count,))
            # Plain arrays over the same memory: a memmap object costs more than the frame.
            self._maps = frames.view(np.ndarray), sums.view(np.ndarray)
            self._file = os.open(self.folder / _FRAMES, os.O_WRONLY)
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None, "_file": -1}

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def _checksum(pixels: np.ndarray) -> int:
    """Checksum of a frame's bytes, never 0; without a copy of the frame."""
    import google_crc32c

    return int(google_crc32c.value(pixels)) or 1


def cache_key(dataset: Dataset, cameras: tuple[str, ...], how: object) -> str:
    """Key that changes with the files, steps, cameras and the way frames are resized."""
    recorded = [dataset.options.camera_names.get(camera, camera) for camera in cameras]
    digest = hashlib.sha256(json.dumps([_VERSION, str(dataset.path.resolve()), recorded]).encode())
    digest.update(repr(how).encode())
    for file in sorted(dataset.content_files()):
        facts = file.stat()
        digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    for episode in dataset:
        digest.update(f"{episode.name} {episode.color_order}".encode())
        digest.update(episode.rows.tobytes())
    return digest.hexdigest()[:32]


def room_for(folder: Path, size: int) -> bool:
    """Whether a cache of `size` bytes leaves half of what is free."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return size <= shutil.disk_usage(here).free // 2 and os.access(here, os.W_OK)
