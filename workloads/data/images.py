"""Conversion of any image that Pillow opens to RGB, for training, evaluation and serving alike.

`Image.convert("RGB")` alone loses what people see: transparent ground turns black, and greys of
16 bits or floating point are cut off at 255. A photograph is turned as its EXIF orientation says
where a person hands over a file (GRPO's rows, questions, a policy's server and client); frames that
robots recorded stay as they are stored, as TensorFlow reads them.
"""

from types import MappingProxyType

import numpy as np
from PIL import ExifTags, Image

WHITE = (255, 255, 255)
_FAINT = 16  # of 255 levels
# Premultiplied modes, and what they are without that.
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
# EXIF orientation → the transposition that turns an image upright.
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
# Where Pillow reads an orientation from; an image keeps all of them when it is turned.
_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 where it is upright."""
    # getexif of the base class: that of PNG decodes the whole image first.
    found: int | None = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return found if found is not None and found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, and then without it: libraries that apply
    orientations themselves do not turn it again."""
    # ImageOps.exif_transpose rewrites all EXIF data, and fails on a camera's odd ones.
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: value for key, value in image.info.items() if key not in _EXIF}
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, as a viewer shows it: laid on white where it is transparent.

    Greys of 16 bits keep their upper eight. Whole numbers of 32 bits and floating point count from
    0 to the smallest of 1 (floating point only), 255 and 65535 that holds them; where none does,
    from their lowest to their highest value. Not finite values are black.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if is_deep(image.mode):
        return Image.fromarray(_greys(np.asarray(image), image.mode)).convert("RGB")
    return image.convert("RGB")


def is_deep(mode: str) -> bool:
    """Whether images of this mode of Pillow's are grey with more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _greys(values: np.ndarray, mode: str) -> np.ndarray:
    """Values of a grey image, [H, W] of any number type, as uint8 [H, W]."""
    if mode.startswith("I;16"):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    exact = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(exact.min(initial=0.0)), float(exact.max(initial=0.0))
    tops = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        low, top = float(exact.min()), float(exact.max() - exact.min())
    else:
        low = 0.0
    return np.rint((exact - low) * (255.0 / (top or 1.0))).astype(np.uint8)


def is_one_colour(image: Image.Image) -> bool:
    """Whether all pixels of an RGB image are (nearly) the same, so that it shows nothing.

    Values of 12 bits in a file of 16 are nearly black, too.
    """
    return all(high - low < _FAINT for low, high in np.asarray(image.getextrema()))
