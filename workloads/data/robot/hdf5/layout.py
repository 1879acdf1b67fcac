"""The paths of demonstrations, vectors, images and instructions in an HDF5 file.

Two layouts are known: robomimic's, which LIBERO shares (`data/demo_N` with `actions` and `obs/…`),
and ALOHA's (one episode a file: `action`, `observations/qpos`, `observations/images/…`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workloads.data.robot.images import is_depth_name

DEMONSTRATIONS = "data"
# The first of these that a demonstration has in full.
STATE_KEYS = (
    ("obs/ee_states", "obs/gripper_states"),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
    ("observations/qpos",),
)
ACTION_KEYS = ("actions", "action")
TEXT_KEYS = ("language_instruction", "instruction", "language_raw", "task_description", "task")
_IMAGE_FOLDERS = ("obs", "observations/images", "observations")
_ENDING = re.compile(r"_(?:rgb|image)$")


@dataclass(frozen=True)
class Camera:
    """Path of a camera's images; encoded: each is a JPEG or PNG, padded with zeros."""

    key: str
    encoded: bool


def demonstrations(file: Any) -> list[str]:
    """The groups of an open file that are demonstrations, in the order of their numbers."""
    if DEMONSTRATIONS in file and hasattr(file[DEMONSTRATIONS], "keys"):
        names = [name for name, item in file[DEMONSTRATIONS].items() if hasattr(item, "keys")]
        return sorted((f"{DEMONSTRATIONS}/{name}" for name in names), key=_by_numbers)
    return ["/"]


def no_demonstrations(file: Any) -> list[str]:
    """What stands among the demonstrations of an open file and is none."""
    there = file.get(DEMONSTRATIONS)
    items = there.items() if hasattr(there, "keys") else ()
    return [f"{DEMONSTRATIONS}/{name}" for name, item in items if not hasattr(item, "keys")]


def _by_numbers(name: str) -> list[Any]:
    """Sort key: demo_10 after demo_2."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def datasets(group: Any) -> dict[str, Any]:
    """All datasets below a group by their path."""
    found: dict[str, Any] = {}
    group.visititems(
        lambda name, item: found.update({name: item}) if hasattr(item, "dtype") else None
    )
    return found


def cameras(found: Mapping[str, Any]) -> tuple[dict[str, Camera], dict[str, str]]:
    """Colour cameras by name, and other images with the reason why they are none."""
    colour: dict[str, Camera] = {}
    other: dict[str, str] = {}
    for key, item in found.items():
        folder, _, name = key.rpartition("/")
        if folder not in _IMAGE_FOLDERS:
            continue
        is_encoded = _is_encoded(item)
        is_pixels = item.dtype == np.uint8 and item.ndim == 4
        if is_depth_name(key) and (item.ndim >= 3 or is_encoded):
            other[key] = "no colour camera: depth"
        elif is_encoded or (is_pixels and item.shape[-1] in (3, 4)):
            colour[_ENDING.sub("", name)] = Camera(key, is_encoded)
        elif item.ndim >= 3:
            other[key] = f"no colour camera: {item.dtype} {list(item.shape[1:])}"
    return dict(sorted(colour.items())), other


def _is_encoded(item: Any) -> bool:
    """Whether each row holds an image file's bytes, of variable length or padded."""
    if item.ndim == 1 and item.dtype.kind == "O" and len(item):
        value = item[0]
        return isinstance(value, np.ndarray) and value.dtype == np.uint8
    return item.ndim == 2 and item.dtype == np.uint8 and item.shape[1] > 64


def texts(
    file: Any, group: Any, found: Mapping[str, Any], wanted: str | None
) -> Iterator[tuple[str, list[str]]]:
    """Names and values of possible instructions: one value, or one a step.

    Attributes of the demonstration and of the file, LIBERO's problem_info, and datasets of text.
    """
    names = (wanted,) if wanted else TEXT_KEYS
    parents = [group, *([file[DEMONSTRATIONS]] if DEMONSTRATIONS in file else []), file]
    for name in names:
        if name in found and is_text(found[name]):
            values = np.atleast_1d(found[name][()])
            yield name, [_as_text(value) for value in values.ravel()]
        for holder in parents:
            if name in holder.attrs:
                yield name, [_as_text(holder.attrs[name])]
    if DEMONSTRATIONS in file and wanted is None:
        info = file[DEMONSTRATIONS].attrs.get("problem_info")
        said = _json(info).get("language_instruction") if info is not None else None
        if said is not None:
            yield "problem_info", ["".join(said) if isinstance(said, list) else str(said)]


def is_text(item: Any) -> bool:
    if item.dtype.kind in "SU":
        return True
    if item.dtype.kind != "O" or not item.size:
        return False
    return isinstance(np.atleast_1d(item[()]).ravel()[0], bytes | str)


def control_rate(file: Any) -> float | None:
    """Steps a second by robomimic's env_args, where they say it."""
    if DEMONSTRATIONS not in file:
        return None
    facts = _json(file[DEMONSTRATIONS].attrs.get("env_args", "{}"))
    options = facts.get("env_kwargs")
    rate = options.get("control_freq") if isinstance(options, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _json(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(_as_text(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
