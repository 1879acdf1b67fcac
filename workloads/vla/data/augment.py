"""OpenVLA's image augmentation, and the centre crop that matches it at inference.

Everything works on uint8 [H, W, 3] at the model's size, after the resize and before the
normalisation: a crop of fixed area resized back, then brightness, contrast, saturation and hue.
"""

import numpy as np
from PIL import Image

from workloads.vla.config import Augmentation
from workloads.vla.processing import ImageProcessor

_FULL = 255.0


def augment(pixels: np.ndarray, how: Augmentation, random: np.random.Generator) -> np.ndarray:
    """A random variation of an image; the same for a generator in the same state.

    pixels: uint8 [H, W, 3] → uint8 [H, W, 3].
    """
    left, top = random.random(2)
    values = _cropped(pixels, how.crop_area, left, top).astype(np.float32) / _FULL
    values = np.clip(values + random.uniform(-how.brightness, how.brightness), 0, 1)
    factor = random.uniform(1 - how.contrast, 1 + how.contrast)
    mean = values.mean(axis=(0, 1), keepdims=True)
    values = np.clip((values - mean) * factor + mean, 0, 1)
    saturation = random.uniform(1 - how.saturation, 1 + how.saturation)
    turn = random.uniform(-how.hue, how.hue)
    values = recoloured(values.astype(np.float32), saturation, turn)
    return np.asarray(np.rint(values * _FULL), dtype=np.uint8)


def centre_crop(pixels: np.ndarray, area: float) -> np.ndarray:
    """The centre of an image with share `area`, at the same size, as an augmented model expects.

    pixels: uint8 [H, W, 3] → uint8 [H, W, 3].
    """
    return _cropped(pixels, area, 0.5, 0.5)


def as_served(processor: ImageProcessor, image: np.ndarray, crop_area: float) -> np.ndarray:
    """An unvaried image as the model sees it, in evaluation and when it serves.

    image: uint8 [H, W, 3] of any size → float32 [C, H, W].
    """
    return processor.normalize(centre_crop(processor.resize(image), crop_area))


def _cropped(pixels: np.ndarray, area: float, left: float, top: float) -> np.ndarray:
    """left, top: 0..1, position of the crop in the remaining space."""
    if area >= 1:
        return pixels
    height, width = pixels.shape[:2]
    side = float(np.sqrt(area))
    x, y = left * width * (1 - side), top * height * (1 - side)
    box = (x, y, x + width * side, y + height * side)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def recoloured(values: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """float32 [H, W, 3] in 0..1 with the saturation of HSV multiplied and the hue turned."""
    high, low = values.max(axis=2), values.min(axis=2)
    spread = high - low
    hue = _hue(values, high, np.where(spread > 0, spread, 1))
    share = np.where(high > 0, spread / np.where(high > 0, high, 1), 0)
    share = np.clip(share * saturation, 0, 1)
    # Each channel is the value minus a share that depends on the distance to its own hue.
    around = (np.array([5, 3, 1], np.float32) + 6 * ((hue + turn) % 1)[..., None]) % 6
    away = np.clip(np.minimum(around, 4 - around), 0, 1)
    return np.asarray(high[..., None] * (1 - share[..., None] * away), dtype=np.float32)


def _hue(values: np.ndarray, high: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Hue in turns, 0 where there is none."""
    red, green, blue = np.moveaxis(values, 2, 0)
    sixth = np.where(
        high == red,
        (green - blue) / spread,
        np.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    return np.asarray(sixth / 6 % 1)
