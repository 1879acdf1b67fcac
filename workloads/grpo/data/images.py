"""Stored images, in files or in cells of a Parquet file, opened one at a time.

Both kinds raise ValueError with what was expected and found; the caller knows the row and names it.
"""

import ast
import base64
import io
import json
import math
import re
import struct
import threading
import warnings
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote

from PIL import Image, UnidentifiedImageError

from workloads.data.images import is_one_colour, orientation, to_rgb, upright
from workloads.errors import UserError

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PNG_START = b"\x89PNG\r\n\x1a\n"
_TAIL = 1024  # last bytes in which a JPEG's end mark is searched
_HEAD = 512  # first bytes, by which a file that is no image is recognised
_WITH_FRAMES = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_WHOLE_WHEN_OPEN = ("WEBP", "AVIF")  # Pillow notices a missing end when it opens them
_NO_IMAGES = (
    ((b"version https://git-lfs",), "a pointer of Git LFS; `git lfs pull` fetches the image"),
    ((b"<html", b"<!DOCTYPE html", b"<!doctype html", b"<HTML"), "a web page; download it again"),
    ((b"<svg", b"<?xml"), "an SVG drawing; convert it to PNG"),
    ((b"%PDF-",), "a PDF; convert its pages to PNG"),
    ((b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC image; convert it to JPEG"),
    ((b"JXL \r\n",), "a JPEG XL image; convert it to JPEG"),
    ((b"PK\x03\x04", b"\x1f\x8b\x08"), "an archive; unpack it"),
    ((b"ftypmp4", b"ftypisom", b"ftypqt", b"\x1aE\xdf\xa3"), "a video; extract images from it"),
)
_BATCH = 256
# The beginnings of JPEG, PNG, GIF, WEBP and BMP in base64; the text is longer than any file name.
_BASE64 = re.compile(r"(?:/9j/|_9j_|iVBORw0KGgo|R0lGOD|UklGR|Qk)[A-Za-z0-9+/_=\s-]{200,}$")
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class StoredImage(Protocol):
    """An image that has not been opened yet."""

    def size(self) -> tuple[int, int]:
        """Upright (width, height) from the header alone."""

    def is_animated(self) -> bool:
        """Whether there are several frames or pages."""

    def load(self) -> Image.Image:
        """The image, upright and RGB."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    def size(self) -> tuple[int, int]:
        """Upright (width, height) from the header alone."""
        with self._open() as stream:
            return upright_size(stream)

    def is_animated(self) -> bool:
        """Whether there are several frames or pages."""
        with self._open() as stream:
            return has_several_frames(stream)

    def load(self) -> Image.Image:
        """The image, upright and RGB."""
        with self._open() as stream:
            return decode(stream)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            stream = self.path.open("rb")
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"expected an image at {self.path}, found: {reason}") from error
        with stream:
            yield stream


@dataclass(frozen=True)
class GreyImage:
    """A grey image as large as another, to test whether a model uses the image."""

    of: StoredImage

    def size(self) -> tuple[int, int]:
        """Upright (width, height) from the other image's header."""
        return self.of.size()

    def is_animated(self) -> bool:
        """Whether there are several frames or pages."""
        return False

    def load(self) -> Image.Image:
        """The grey image, RGB."""
        return Image.new("RGB", self.of.size(), (128, 128, 128))


class ParquetTable:
    """A Parquet file with images in it, read one group of rows at a time.

    The last group stays in memory, so that going through the rows in order reads each once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._group: tuple[str, int, list[Any]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._file.schema_arrow.names)

    @property
    def light(self) -> list[str]:
        """The columns that hold no images: neither bytes nor structures with bytes in them."""
        return [field.name for field in self._file.schema_arrow if "binary" not in str(field.type)]

    def texts(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows in order, only `columns` of them."""
        with _whole_file(self.path):
            for batch in self._file.iter_batches(_BATCH, columns=columns):
                yield from batch.to_pylist()

    def cell(self, column: str, row: int) -> Any:
        """One cell as a Python object."""
        group, first = self._group_of(row)
        with self._lock, _whole_file(self.path):
            if self._group is None or self._group[:2] != (column, group):
                table = self._file.read_row_group(group, columns=[column])
                self._group = (column, group, table.column(column).to_pylist())
            return self._group[2][row - first]

    @cached_property
    def _file(self) -> Any:
        import pyarrow.parquet as pq

        with _whole_file(self.path):
            return pq.ParquetFile(self.path)

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each group, and the number of rows behind the last."""
        starts = [0]
        for group in range(self._file.metadata.num_row_groups):
            starts.append(starts[-1] + self._file.metadata.row_group(group).num_rows)
        return starts

    def _group_of(self, row: int) -> tuple[int, int]:
        group = bisect_right(self._starts, row) - 1
        return group, self._starts[group]


@dataclass(frozen=True)
class ParquetImage:
    """The image `number` of a cell of a Parquet file; a path in it is looked for below `root`."""

    table: ParquetTable
    column: str
    row: int
    number: int
    root: Path

    def size(self) -> tuple[int, int]:
        """Upright (width, height) from the header alone."""
        return self._stored().size()

    def is_animated(self) -> bool:
        """Whether there are several frames or pages."""
        return self._stored().is_animated()

    def load(self) -> Image.Image:
        """The image, upright and RGB."""
        return self._stored().load()

    def _stored(self) -> StoredImage:
        return find_image(images_of(self.table.cell(self.column, self.row))[self.number], self.root)


@dataclass(frozen=True)
class ImageBytes:
    """An image in memory."""

    content: bytes

    def size(self) -> tuple[int, int]:
        """Upright (width, height) from the header alone."""
        return upright_size(io.BytesIO(self.content))

    def is_animated(self) -> bool:
        """Whether there are several frames or pages."""
        return has_several_frames(io.BytesIO(self.content))

    def load(self) -> Image.Image:
        """The image, upright and RGB."""
        return decode(io.BytesIO(self.content))


def parsed_list(cell: Any) -> Any:
    """The list that a cell holds as text of JSON or Python; else the cell itself."""
    if not isinstance(cell, str) or not cell.strip().startswith("["):
        return cell
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = parse(cell.strip())
            return found if isinstance(found, list) else cell
    return cell


def images_of(cell: Any) -> list[Any]:
    """The images of a cell: none, one, or a list of them; JSON of a list counts as one."""
    cell = parsed_list(cell)
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return []
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def find_image(value: Any, root: Path) -> StoredImage:
    """The image that a cell names or holds; ValueError without one.

    A path counts from `root` or its folder `images`, with or without its leading folders; bytes,
    `{bytes, path}` as the datasets library writes it, and base64, alone or as `data:` address, hold
    the image themselves.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value.get("url") or value.get("image")
    if isinstance(value, bytes):
        return ImageBytes(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected the path of an image, found {value!r:.60}")
    if value[:5].lower() == "data:" or _BASE64.match(value):
        return _decoded(value)
    if _ADDRESS.match(value):
        raise ValueError(
            f"expected an image on disk, found the address {value:.60}; download the images first"
        )
    is_address = value.lower().startswith("file://")
    name = unquote(value[len("file://") :]) if is_address else value
    for path in map(Path, dict.fromkeys((name, name.replace("\\", "/"), name.strip()))):
        for leading in range(len(path.parts)):
            below = Path(*path.parts[leading:]) if leading else path.expanduser()
            for place in (root / below, root / "images" / below):
                with suppress(OSError):  # a name that is too long
                    if place.is_file():
                        return ImageFile(place)
    raise ValueError(f"expected an image at {root / name!s:.200}, found no file there")


def _decoded(value: str) -> "ImageBytes":
    """The bytes of base64, also in lines, in the alphabet of addresses, or without its end."""
    text = "".join(value.rpartition(",")[2].split()).translate(str.maketrans("-_", "+/"))
    try:
        return ImageBytes(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except ValueError as error:
        raise ValueError(f"expected an image in base64, found {value[:40]!r}…: {error}") from error


def first_blank(images: Iterable[StoredImage]) -> StoredImage | None:
    """The first image of a single colour, which shows nothing; unreadable ones are skipped."""
    for image in images:
        with suppress(ValueError):
            if is_one_colour(image.load()):
                return image
    return None


def first_animated(images: Iterable[StoredImage]) -> StoredImage | None:
    """The first image with several frames or pages; images that cannot be opened are skipped."""
    for image in images:
        with suppress(ValueError):
            if image.is_animated():
                return image
    return None


def has_several_frames(stream: IO[bytes]) -> bool:
    """Whether the image in `stream` has frames or pages; a second image in a JPEG file does not
    count."""
    with _readable(stream), Image.open(stream) as image:
        if image.format not in _WITH_FRAMES:
            return False
        try:
            image.seek(1)
        except EOFError:
            return False
        return True


def upright_size(stream: IO[bytes]) -> tuple[int, int]:
    """Upright (width, height) of the image in `stream`, from its header.

    ValueError also for an image that is damaged after its header, which a training would meet hours
    later; rare formats are decoded for this.
    """
    with _readable(stream), Image.open(stream) as image:
        width, height = image.size
        if image.format == "PNG":
            whole = _has_whole_chunks(image, stream)
        elif image.format in ("JPEG", "MPO"):
            whole = _has_end(stream)
        else:
            whole = image.format in _WHOLE_WHEN_OPEN
        if not whole:
            image.load()  # an image that Pillow can read nevertheless is good enough
        turned = orientation(image) in _SIDEWAYS
        # Pillow rotates a TIFF itself, and reports the size after that.
        return (height, width) if turned and image.format != "TIFF" else (width, height)


def _has_whole_chunks(image: Image.Image, stream: IO[bytes]) -> bool:
    """Whether a PNG's chunks match their checksums; also reads an orientation after the pixels."""
    stream.seek(len(_PNG_START))
    while len(head := stream.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        content, checksum = stream.read(size), stream.read(4)
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            return False
        if kind == b"IEND":
            return True
        if kind == b"eXIf":
            image.info["exif"] = content
    return False


def _has_end(stream: IO[bytes]) -> bool:
    """Whether a JPEG's end mark is near its end; some programs append more."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    return b"\xff\xd9" in stream.read(_TAIL)


def decode(stream: IO[bytes]) -> Image.Image:
    """The image in `stream`, turned upright and as RGB."""
    with _readable(stream), Image.open(stream) as image:
        image.load()
        return to_rgb(upright(image))


@contextmanager
def _readable(stream: IO[bytes]) -> Iterator[None]:
    """Turn Pillow's many errors for a file into ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError as error:
        raise ValueError(f"expected an image, found {_described(stream)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"expected at most {limit} pixels, found more: {error}") from error
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f"expected a whole image, found: {error}") from error


def _described(stream: IO[bytes]) -> str:
    """The kind of a file that is no image, by its first bytes, and what to do about it."""
    stream.seek(0)
    head = stream.read(_HEAD)
    if not head:
        return "an empty file; copy it again"
    return next(
        (said for marks, said in _NO_IMAGES if any(mark in head for mark in marks)),
        f"bytes of no known format, {head[:16]!r}…",
    )


@contextmanager
def _whole_file(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: expected a whole Parquet file, found: {reason}") from error
