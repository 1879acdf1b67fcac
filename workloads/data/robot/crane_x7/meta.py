"""The meta.json beside an episode; recorders do not write it, converters may."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.data.robot.options import ColorOrder
from workloads.errors import UserError
from workloads.json_files import read_json

FILE_NAME = "meta.json"
_COLOR_ORDERS: dict[str, ColorOrder] = {"rgb": "rgb", "bgr": "bgr", "bgr_swapped": "bgr"}


@dataclass(frozen=True)
class EpisodeMeta:
    """Steps a second, (height, width) of depth images, order of colours; None where not said."""

    fps: float | None = None
    depth_shape: tuple[int, int] | None = None
    color_order: ColorOrder | None = None


def read_meta(folder: Path) -> EpisodeMeta:
    """Read the file where there is one; raises UserError naming the field at fault."""
    file = folder / FILE_NAME
    if not file.is_file():
        return EpisodeMeta()
    fields = read_json(file)
    fps, shape = fields.get("fps"), fields.get("depth_shape")
    stated = fields.get("image_color_order")
    if fps is not None and not (_is_number(fps) and fps > 0):
        raise _mistake(file, "fps above 0", fps)
    if shape and not (isinstance(shape, list) and all(map(_is_size, shape[:2])) and len(shape) > 1):
        raise _mistake(file, "depth_shape of height and width", shape)
    if stated is not None and (not isinstance(stated, str) or stated not in _COLOR_ORDERS):
        raise _mistake(file, f"image_color_order of {', '.join(_COLOR_ORDERS)}", stated)
    return EpisodeMeta(
        None if fps is None else float(fps),
        (shape[0], shape[1]) if shape else None,
        None if stated is None else _COLOR_ORDERS[stated],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _mistake(file: Path, expected: str, found: Any) -> UserError:
    return UserError(f"{file}: expected {expected}, found {found!r}; fix or remove it")
