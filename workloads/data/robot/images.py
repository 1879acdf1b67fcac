"""Decodes images to arrays, with a reason for each image that cannot be decoded."""

import io
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from workloads.data.images import is_deep, orientation, to_rgb, upright

_DEPTH_NAME = re.compile(r"(^|[._/-])depth($|[._/-])", re.IGNORECASE)
# The first bytes of the formats that recorders write; anything else is no image.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"RIFF")


class ImageError(ValueError):
    """The bytes are not a readable image."""


def is_depth_name(key: str) -> bool:
    """Whether a feature is depth by its name, whatever its images look like."""
    return _DEPTH_NAME.search(key) is not None


def camera_names(keys: Iterable[str], short: Callable[[str], str]) -> dict[str, str]:
    """Cameras by name: the short names of features, whole ones where several have the same."""
    names = {key: short(key) for key in keys}
    counts = Counter(names.values())
    return {name if counts[name] == 1 else key: key for key, name in names.items()}


def looks_like_image(encoded: bytes) -> bool:
    """Whether the bytes begin as a JPEG, PNG, BMP, GIF or WebP does: a check that costs nothing."""
    return encoded.startswith(_SIGNATURES)


def decode(encoded: bytes, is_photograph: bool = False) -> np.ndarray:
    """JPEG, PNG, … → uint8 [H, W, 3] in the file's own order of colours; raises ImageError.

    A photograph is turned as its EXIF orientation says, a recorded frame is not.
    """
    with _opened(encoded) as image:
        if is_photograph:
            image.load()
            return np.array(to_rgb(upright(image)))
        return np.array(to_rgb(image))


def decode_image(encoded: bytes) -> Image.Image:
    """The same as a Pillow image; raises ImageError."""
    with _opened(encoded) as image:
        rgb = to_rgb(image)
        rgb.load()
        return rgb


def shape_of(encoded: bytes) -> tuple[int, int]:
    """Height and width, from the header alone; raises ImageError."""
    with _opened(encoded) as image:
        return image.height, image.width


def kind_of(encoded: bytes) -> Literal["colour", "grey", "deep", "transparent", "turned"]:
    """The kind of an image, from the header alone; "deep" is grey with more than 8 bits, as depth
    maps are, "turned" has an EXIF orientation other than upright. Raises ImageError."""
    with _opened(encoded) as image:
        if orientation(image) != 1:
            return "turned"
        if is_deep(image.mode):
            return "deep"
        if image.has_transparency_data:
            return "transparent"
        return "grey" if image.mode in ("1", "L") else "colour"


def is_jpeg_or_png(encoded: bytes) -> bool:
    """Whether the bytes are JPEG or PNG, which every reader of datasets knows."""
    return encoded.startswith(_SIGNATURES[:2])


def histogram(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] → how often each level occurs, int64 [3, 256]."""
    return np.array(Image.fromarray(pixels).histogram(), np.int64).reshape(3, 256)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 | 3 | 4] → [H, W, 3]: grey becomes RGB, transparency is left out."""
    return np.repeat(pixels, 3, 2) if pixels.shape[-1] == 1 else pixels[..., :3].copy()


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """Open an image; Pillow's errors, here and in the caller's block, become ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded)) as image:
                yield image
    except UnidentifiedImageError:
        # Pillow's message holds an address; the same damage should give the same message.
        raise ImageError("image decode error: not an image of a known format") from None
    # What Pillow's decoders raise on broken input, each format its own.
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ImageError(f"image decode error: {error}") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] → PNG, without loss."""
    buffer = io.BytesIO()
    # Level 1 of 9 takes a quarter of the usual time for a sixth more bytes.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """uint8 [H, W, 3] → JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [size, size, 3], as the CRANE-X7 origin's loader makes images.

    Bilinear about the centres of pixels, not smoothed before, cut off to whole numbers: what
    TensorFlow's `resize` does by default. Models resize by themselves, each its own way.
    """
    above, below, down = _neighbours(pixels.shape[0], size)
    left, right, across = _neighbours(pixels.shape[1], size)
    exact, across = pixels.astype(np.float32), across[None, :, None]
    upper, lower = (
        exact[rows][:, left] + (exact[rows][:, right] - exact[rows][:, left]) * across
        for rows in (above, below)
    )
    return (upper + (lower - upper) * down[:, None, None]).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel its two neighbours among the old ones, and its distance from the first."""
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(places)
    share = (places - first).astype(np.float32)
    low, high = (np.clip(item, 0, old - 1).astype(np.int64) for item in (first, first + 1))
    return low, high, share
