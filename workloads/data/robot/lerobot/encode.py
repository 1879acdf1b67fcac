"""Encodes frames to mp4 as LeRobot does, and decodes them again as a check."""

import contextlib
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from workloads.errors import UserError

Codec = Literal["h264", "av1"]
CODECS: tuple[Codec, ...] = ("h264", "av1")
_ENCODERS = {"h264": "libx264", "av1": "libsvtav1"}
# LeRobot's quality: CRF 30 of AV1, which for H.264 is about 23; every second frame can be
# decoded without those before it.
_OPTIONS = {"h264": {"crf": "23", "g": "2"}, "av1": {"crf": "30", "g": "2", "preset": "8"}}
_MOST_OFF = 16.0  # mean difference allowed between a frame and its decoded copy, of 255


def encode_video(file: Path, frames: Sequence[np.ndarray], fps: float, codec: Codec) -> None:
    """Write frames uint8 [H, W, 3] RGB and check by decoding that all are there and look alike.

    Raises UserError where the encoder is missing or a decoded frame differs.
    """
    os.environ.setdefault("SVT_LOG", "1")  # otherwise the AV1 encoder logs every start
    import av

    height, width = frames[0].shape[:2]
    # Two by two pixels share a colour, which needs even sides.
    pixel_format = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1000)
            stream = container.add_stream(_ENCODERS[codec], rate=rate, options=_OPTIONS[codec])
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            for number, pixels in enumerate(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                if number == 0:
                    _give_back_priority()
            container.mux(stream.encode())
        _check(file, frames)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"{file.name}: expected to encode {width} x {height} as {codec}, found: {error}; "
            "choose another --video, or leave it out"
        ) from error


def _give_back_priority() -> None:
    """Undo the priority that SVT-AV1 4.1 sets when root opens it.

    It puts its threads and the calling thread under SCHED_FIFO at priority 99, where they, and
    every process they start, starve the machine.
    """
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            if os.sched_getscheduler(int(thread.name)) != os.SCHED_OTHER:
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _check(file: Path, frames: Sequence[np.ndarray]) -> None:
    import av

    with av.open(str(file)) as container:
        count = 0
        for frame in container.decode(video=0):
            if count < len(frames):
                found = frame.to_ndarray(format="rgb24").astype(np.int16)
                off = float(np.abs(found - frames[count]).mean())
                if off > _MOST_OFF:
                    raise ValueError(f"frame {count} is off by {off:.0f} of 255 levels")
            count += 1
    if count != len(frames):
        raise ValueError(f"{count} frames of {len(frames)}")
