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

from workloads.data.robot.images import camera_names, is_depth_name, looks_like_image

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
_NUMBERED = re.compile(r"(?:demo|episode|traj)_?\d+")
_ENDING = re.compile(r"_(?:rgb|image)$")
_PLAIN = ("rgb", "image", "color")


@dataclass(frozen=True)
class Camera:
    """Path of a camera's images; encoded: each is a JPEG or PNG, padded with zeros."""

    key: str
    encoded: bool


def demonstrations(file: Any) -> list[str]:
    """The groups of an open file that are demonstrations, in the order of their numbers."""
    if DEMONSTRATIONS in file and hasattr(file[DEMONSTRATIONS], "keys"):
        names = _groups(file[DEMONSTRATIONS])
        found = [path for name in names for path in _numbered(file, f"{DEMONSTRATIONS}/{name}")]
        return sorted(found, key=_by_numbers)
    return sorted(_numbered(file, "/"), key=_by_numbers)


def _numbered(file: Any, path: str) -> list[str]:
    """The groups in a group that are numbered as demonstrations are; itself where none is."""
    numbered = [name for name in _groups(file[path]) if _NUMBERED.fullmatch(name)]
    return [f"{path.rstrip('/')}/{name}".lstrip("/") for name in numbered] or [path]


def _groups(group: Any) -> list[str]:
    """The names of the groups in a group; a link may lead nowhere."""
    return [name for name in group if hasattr(group.get(name), "keys")]


def no_demonstrations(file: Any) -> list[str]:
    """What stands among the demonstrations of an open file and is none."""
    there = file.get(DEMONSTRATIONS)
    if not hasattr(there, "keys"):
        return []
    others = {*there} - {*_groups(there)} - {*lost_links(file)}
    return [f"{DEMONSTRATIONS}/{name}" for name in there if name in others]


def lost_links(file: Any) -> list[str]:
    """The names among the demonstrations of an open file that link to what is not there."""
    there = file.get(DEMONSTRATIONS)
    return [name for name in there if there.get(name) is None] if hasattr(there, "keys") else []


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
    colour: dict[str, bool] = {}
    other: dict[str, str] = {}
    for key, item in found.items():
        is_encoded = _is_encoded(item)
        if key.rpartition("/")[0] not in _IMAGE_FOLDERS and not is_encoded:
            continue
        is_pixels = item.dtype == np.uint8 and item.ndim == 4
        if is_depth_name(key) and (item.ndim >= 3 or is_encoded):
            other[key] = "no colour camera: depth"
        elif is_encoded or (is_pixels and item.shape[-1] in (3, 4)):
            colour[key] = is_encoded
        elif item.ndim >= 3:
            other[key] = f"no colour camera: {item.dtype} {list(item.shape[1:])}"
    named = camera_names(colour, _camera_name)
    return {name: Camera(key, colour[key]) for name, key in sorted(named.items())}, other


def _camera_name(key: str) -> str:
    """The last part of a path; the one before it where the last says only that it is an image."""
    folder, _, name = key.rpartition("/")
    return folder.rpartition("/")[2] if name in _PLAIN else _ENDING.sub("", name)


def _is_encoded(item: Any) -> bool:
    """Whether each row holds an image file's bytes, of variable length or padded."""
    is_bytes = item.ndim == 1 and item.dtype.kind in "OSV"
    is_padded = item.ndim == 2 and item.dtype == np.uint8
    if not (is_bytes or is_padded) or not len(item):
        return False
    # A single image may be damaged.
    some = {0, len(item) // 2, len(item) - 1}
    return any(looks_like_image(content(item[number])) for number in some)


def content(value: Any) -> bytes:
    """The bytes of a row, whatever they are stored as; none for a row of something else."""
    if isinstance(value, bytes):
        return value
    return np.asarray(value).tobytes() if isinstance(value, np.ndarray | np.void) else b""


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
            yield name, _as_texts(found[name][()], name)
        for holder in parents:
            values = _as_texts(holder.attrs[name], name) if name in holder.attrs else []
            if values:
                yield name, values
    if DEMONSTRATIONS in file and wanted is None:
        said = _json(file[DEMONSTRATIONS].attrs.get("problem_info")).get("language_instruction")
        if said is not None:
            yield "problem_info", ["".join(said) if isinstance(said, list) else str(said)]


def is_text(item: Any) -> bool:
    if item.dtype.kind not in "SUO" or not item.size or _is_encoded(item):
        return False
    return item.dtype.kind != "O" or isinstance(np.ravel(item[()])[0], bytes | str)


def control_rate(file: Any) -> float | None:
    """Steps a second by robomimic's env_args, where they say it."""
    if DEMONSTRATIONS not in file:
        return None
    facts = _json(file[DEMONSTRATIONS].attrs.get("env_args"))
    options = facts.get("env_kwargs")
    rate = options.get("control_freq") if isinstance(options, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def stated_steps(group: Any) -> int | None:
    """Number of steps of a demonstration by robomimic's attribute."""
    stated = group.attrs.get("num_samples")
    return int(stated) if isinstance(stated, int | np.integer) else None


def _json(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, bytes | str) else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_texts(value: Any, name: str) -> list[str]:
    """The texts of an attribute or a dataset, none where it holds something else.

    Raises ValueError for bytes that are not UTF-8.
    """
    values = np.ravel(value).tolist() if isinstance(value, np.ndarray) else [value]
    if not all(isinstance(text, bytes | str) for text in values):
        return []
    try:
        return [text.decode("utf-8") if isinstance(text, bytes) else text for text in values]
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None
