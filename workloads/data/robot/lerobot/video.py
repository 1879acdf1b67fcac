"""Exact access to single frames of videos."""

import os
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from workloads import missing_files
from workloads.data.robot.lru import LruCache

_VIDEOS_OPEN = 4
_FRAMES_KEPT = 8


class VideoError(ValueError):
    """The video cannot be read, or has no frame at the time asked for."""


def video_facts(path: Path) -> tuple[int, str]:
    """Number of frames that a video shows, and the name of its pixel format; VideoError.

    The header counts all frames. It is believed where the index has as many and an edit list
    leaves none of them out; else all packets are read.
    """
    import av

    if missing_files.is_pointer(path):
        raise VideoError(missing_files.WHAT_TO_DO)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = sum(not entry.is_discard for entry in stream.index_entries)
            frames = shown if 0 < shown == stream.frames else len(frame_times(path))
            return frames, str(stream.codec_context.pix_fmt)
    except (av.FFmpegError, ValueError, EOFError, OSError, IndexError) as error:
        raise VideoError(f"not a readable video: {error}") from error


def frame_times(path: Path) -> np.ndarray:
    """Seconds of all frames in order, float64 [frames], without decoding any; VideoError."""
    video = _Video(path)
    times = np.array(video.times, np.float64) * video.seconds_a_unit
    video.close()
    return times


class OpenVideos:
    """LRU cache of open videos, each with its last frames; every process opens its own.

    cameras: videos read for one step, all of which stay open.
    """

    def __init__(self, cameras: int = 1) -> None:
        self._most = max(_VIDEOS_OPEN, cameras)
        self._open: LruCache[Path, _Video] = LruCache(self._most, _Video.close)
        self._process = os.getpid()

    def frame(self, path: Path, seconds: float) -> np.ndarray:
        """The frame nearest to `seconds`, at most half a frame away: uint8 [H, W, 3] RGB."""
        return self._video(path).frame(seconds)

    def frame_number(self, path: Path, number: int) -> np.ndarray:
        """The frame by its number in the order shown, from 0: uint8 [H, W, 3] RGB."""
        return self._video(path).frame_number(number)

    def _video(self, path: Path) -> "_Video":
        if self._process != os.getpid():  # a forked worker must not share file positions
            self._open, self._process = LruCache(self._most, _Video.close), os.getpid()
        return self._open.get(path, lambda: _Video(path))


class _Video:
    def __init__(self, path: Path) -> None:
        import av  # loads ffmpeg: only where there are videos

        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, ValueError, EOFError)
        self.path = path
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            self.times, self._keys = self._timetable()
        except (*self._errors, OSError, IndexError) as error:
            raise VideoError(f"not a readable video: {error}") from error
        self._frames: LruCache[int, np.ndarray] = LruCache(_FRAMES_KEPT)
        self._decoder: Any = None
        self._last: int | None = None

    def close(self) -> None:
        self._container.close()

    @property
    def seconds_a_unit(self) -> float:
        return float(self._stream.time_base)

    def frame_number(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self.times):
            raise VideoError(f"no frame {number}, {len(self.times)} frames in all")
        return self._frame_at(self.times[number])

    def frame(self, seconds: float) -> np.ndarray:
        return self._frame_at(self._nearest(seconds))

    def _frame_at(self, wanted: int) -> np.ndarray:
        return self._frames.get(wanted, lambda: self._decode(wanted)).copy()

    def _timetable(self) -> tuple[list[int], list[int]]:
        """Times of all frames and of key frames in stream units, without decoding any."""
        packets = [
            packet
            for packet in self._container.demux(self._stream)
            if packet.pts is not None and not packet.is_discard
        ]
        if not packets:
            raise ValueError("no frames")
        times = sorted(packet.pts for packet in packets)
        return times, sorted(packet.pts for packet in packets if packet.is_keyframe)

    def _nearest(self, seconds: float) -> int:
        wanted = seconds / self.seconds_a_unit
        at = bisect_left(self.times, wanted)
        near = min(self.times[max(at - 1, 0) : at + 1], key=lambda time: abs(time - wanted))
        spacing = (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)
        if not abs(near - wanted) <= spacing / 2 + 1e-6 * abs(wanted):  # nor for NaN
            raise VideoError(f"no frame at {seconds:.3f} s, {len(self.times)} frames in all")
        return near

    def _decode(self, wanted: int) -> np.ndarray:
        try:
            if not self._ahead(wanted):
                self._container.seek(wanted, stream=self._stream)
                self._decoder = self._container.decode(self._stream)
            for frame in self._decoder:
                self._last = frame.pts
                if frame.pts == wanted:
                    return np.asarray(frame.to_ndarray(format="rgb24"))
        except self._errors as error:
            self._decoder, self._last = None, None
            raise VideoError(f"frame cannot be decoded: {error}") from error
        self._decoder, self._last = None, None
        raise VideoError("frame cannot be decoded: the video ends before it")

    def _ahead(self, wanted: int) -> bool:
        """Whether decoding forward is as short as a seek to the frame's key frame."""
        if self._decoder is None or self._last is None or self._last >= wanted:
            return False
        return bisect_right(self._keys, self._last) == bisect_right(self._keys, wanted)
