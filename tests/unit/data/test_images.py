"""Every mode of Pillow as RGB, as a viewer shows it; case G-F1."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from workloads.data.images import is_one_colour, to_rgb
from workloads.data.robot.images import decode as decode_frame
from workloads.data.robot.images import kind_of
from workloads.grpo.data.images import ImageFile
from workloads.vla.processing import _as_rgb
from workloads.vla.serve.client import _image, _to_rgb
from workloads.vla.serve.messages import _decoded

pytestmark = pytest.mark.unit
OPENERS = [to_rgb, _to_rgb, _as_rgb]


def drawing() -> Image.Image:
    """Black lines on a transparent ground."""
    clear = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    line = [(4, 36), (56, 36), (30, 4), (4, 36)]
    ImageDraw.Draw(clear).line(line, fill=(0, 0, 0, 255), width=3)
    return clear


def indexed() -> Image.Image:
    image = Image.fromarray((np.asarray(drawing())[..., 3] > 0).astype("uint8"))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.info["transparency"] = 0
    return image


def half() -> Image.Image:
    image = drawing()
    image.putalpha(image.getchannel("A").point(lambda value: value // 2))
    return image


def keyed() -> Image.Image:
    """RGB with one colour that stands for transparent."""
    image = Image.new("RGB", (60, 40), (1, 2, 3))
    ImageDraw.Draw(image).line([(4, 36), (56, 4)], fill=(9, 9, 9), width=3)
    image.info["transparency"] = (1, 2, 3)
    return image


def grey_keyed() -> Image.Image:
    image = Image.new("L", (60, 40), 0)
    ImageDraw.Draw(image).line([(4, 36), (56, 4)], fill=1, width=3)
    image.info["transparency"] = 0
    return image


TRANSPARENT: dict[str, Any] = {
    "RGBA": drawing,
    "LA": lambda: drawing().convert("LA"),
    "RGBa": lambda: drawing().convert("RGBa"),
    "La": lambda: drawing().convert("LA").convert("La"),
    "PA": lambda: drawing().convert("PA"),
    "P with tRNS": indexed,
    "RGB with tRNS": keyed,
    "L with tRNS": grey_keyed,
    "half transparent": half,
}


@pytest.mark.parametrize(
    ("mode", "opener"),
    # The client opens files alone, and none has La.
    [
        (mode, opener)
        for mode in TRANSPARENT
        for opener in OPENERS
        if (mode, opener) != ("La", _to_rgb)
    ],
)
def test_what_is_transparent_is_white(mode: str, opener: Any) -> None:
    """G-F1: a drawing on a transparent ground is not a black rectangle."""
    image = TRANSPARENT[mode]()
    found = opener(image)
    pixels = np.asarray(found)
    assert found.mode == "RGB" and not is_one_colour(found)
    assert pixels[1, 1].tolist() == [255, 255, 255]
    assert pixels.min() < 140


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.tiff"])
def test_files_with_transparency(tmp_path: Path, name: str) -> None:
    """G-F1: PNG, WEBP, GIF and TIFF, in a file and in bytes."""
    options = {"lossless": True} if name.endswith("webp") else {}
    drawing().save(tmp_path / name, **options)
    found = ImageFile(tmp_path / name).load()
    frame = decode_frame((tmp_path / name).read_bytes())
    assert np.asarray(found)[1, 1].min() > 200 and not is_one_colour(found)
    assert np.array_equal(np.asarray(found), frame)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(0, 1, 60), "float32"),
        (np.linspace(0, 255, 60), "float32"),
        (np.linspace(0, 65535, 60), "float32"),
        (np.linspace(-3, 5, 60), "float32"),
        (np.linspace(0, 65535, 60), "uint16"),
        (np.linspace(0, 255, 60), "int32"),
        (np.linspace(0, 65535, 60), "int32"),
        (np.linspace(-1e6, 1e6, 60), "int32"),
    ],
)
def test_a_ramp_keeps_its_greys(values: np.ndarray, kind: str) -> None:
    """G-F1: greys of 16 and 32 bits and of floating point."""
    ramp = Image.fromarray(values.astype(kind)[None].repeat(8, 0))
    row = np.asarray(to_rgb(ramp))[0, :, 0].astype(int)
    assert row[0] == 0 and row[-1] == 255
    assert np.all(np.abs(np.diff(row) - 255 / 59) < 1.5)


def test_a_ramp_in_a_file(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 60, dtype="float32")[None].repeat(40, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    assert len(np.unique(np.asarray(ImageFile(tmp_path / "ramp.tiff").load()))) == 60
    sixteen = (np.linspace(0, 65535, 60)[None].repeat(40, 0)).astype("uint16")
    Image.fromarray(sixteen).save(tmp_path / "ramp.png")
    assert len(np.unique(np.asarray(ImageFile(tmp_path / "ramp.png").load()))) == 60


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_modes_without_transparency_are_as_pillow_shows_them(mode: str) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = Image.new("LAB", (8, 8), (100, 20, 30)) if mode == "LAB" else colours.convert(mode)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_values_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, np.inf, 0.5, 1.0]], dtype="float32")
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_an_image_of_one_colour_is_known() -> None:
    assert is_one_colour(Image.new("RGB", (4, 4), (7, 8, 9)))
    assert not is_one_colour(to_rgb(drawing()))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    assert is_one_colour(to_rgb(Image.open(buffer)))


@pytest.mark.parametrize("code", range(1, 9))
def test_a_photograph_is_turned_and_a_recorded_frame_is_not(tmp_path: Path, code: int) -> None:
    """A policy's server and client see a file as a viewer shows it, with its orientation; frames of
    robot data are read as TensorFlow reads them."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = code
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    encoded = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(decode_frame(encoded), pixels)
    assert kind_of(encoded) == ("colour" if code == 1 else "turned")
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    _, sent = _image(str(tmp_path / "a.png"))
    assert np.array_equal(decode_frame(encoded, is_photograph=True), shown)
    assert np.array_equal(_decoded(encoded, "image"), shown)
    assert np.array_equal(sent, shown)
    assert np.array_equal(np.asarray(ImageFile(tmp_path / "a.png").load()), shown)
