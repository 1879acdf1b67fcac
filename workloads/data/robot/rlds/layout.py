"""Which features of an RLDS dataset are states, actions, images and texts, by its features.json."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.data.robot.images import camera_names, is_depth_name
from workloads.data.robot.options import Options
from workloads.errors import UserError
from workloads.json_files import read_json

STATE_KEYS = ("observation/proprio", "observation/state", "observation/joint_state")
ACTION_KEYS = ("action",)
TEXT_KEYS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/natural_language_instruction",
    "steps/observation/language_instruction",
    "steps/instruction",
    # DROID has up to three, any of which may be empty.
    "steps/language_instruction_2",
    "steps/language_instruction_3",
    "episode_metadata/language_instruction",
    "language_instruction",
)
_FLAGS = {"is_first", "is_last", "is_terminal", "discount", "reward"}


@dataclass(frozen=True)
class Spec:
    """One feature: kind "tensor", "image", "text", "class" or one that nothing reads, its shape
    and type."""

    kind: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        if self.kind == "class":
            return f"a class of {self.shape[0]}"
        size = f" {list(self.shape)}" if self.shape else ""
        return "a text" if self.kind == "text" else f"{self.kind} {self.dtype}{size}".strip()


@dataclass(frozen=True)
class Layout:
    """Which features are used; keys of states, actions and cameras are without `steps/`.

    raw: for cameras whose images are stored as their pixels, height, width and channels; letters:
    numbers of each text, where there are several: its bytes or code points, and zeros behind them.
    """

    states: tuple[tuple[str, int], ...]  # key, values a step
    actions: tuple[tuple[str, int], ...]
    cameras: dict[str, str]
    raw: dict[str, tuple[int, ...]]
    texts: tuple[str, ...]
    numbers: bool  # texts are numbers
    letters: int = 1


@dataclass(frozen=True)
class Features:
    """All of a features.json: the layout that options choose, other texts, and what is unused."""

    layout: Layout
    text_keys: tuple[str, ...]
    unused: dict[str, str]


def read_features(path: Path, options: Options) -> Features:
    """Read a folder's features.json by `options`; raises UserError where a feature is missing."""
    steps, episode = _specs(read_json(path / "features.json"), path)
    usual = STATE_KEYS if any(_is_vector(steps.get(key)) for key in STATE_KEYS) else ()
    states: tuple[tuple[str, int], ...] = ()
    if options.state_keys or usual:
        states = _vector_keys(steps, options.state_keys, usual, "state_keys", path)
    actions = _vector_keys(steps, options.action_keys, ACTION_KEYS, "action_keys", path)
    cameras, unused = _cameras(steps)
    every = {f"steps/{key}": spec for key, spec in steps.items()} | episode
    texts = tuple(key for key, spec in every.items() if spec.kind == "text")
    chosen: tuple[str, ...] = TEXT_KEYS
    numbers, letters = False, 1
    if options.instruction_key is not None:
        key = _text_key(every, options.instruction_key, texts, path)
        letters = math.prod(every[key].shape) if every[key].kind == "tensor" else 1
        chosen, numbers = (key,), every[key].kind != "text" and letters == 1
    raw = {key: steps[key].shape for key in cameras.values() if steps[key].kind == "tensor"}
    layout = Layout(states, actions, cameras, raw, chosen, numbers, letters)
    used = {f"steps/{key}" for key, _ in (*states, *actions)}
    used |= {f"steps/{key}" for key in cameras.values()} | {*chosen}
    for key, spec in every.items():
        name = key.removeprefix("steps/")
        if key not in used and name not in _FLAGS and name not in unused:
            unused[name] = str(spec)
    return Features(layout, texts, unused)


def _specs(features: dict[str, Any], path: Path) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """The features of a step, and those of an episode, by key."""
    file = path / "features.json"
    if "featuresDict" not in features and {"type", "content"} <= features.keys():
        raise UserError(
            f"{file}: expected a 'featuresDict', found 'type' and 'content': written by an old "
            "tensorflow_datasets; read the dataset with tfds.builder_from_directory of a version "
            "from 4.7 on and write it again"
        )
    try:
        whole = dict(features["featuresDict"]["features"])
        steps: dict[str, Spec] = {}
        _collect(whole.pop("steps")["sequence"]["feature"], "", steps)
        episode: dict[str, Spec] = {}
        _collect({"featuresDict": {"features": whole}}, "", episode)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{file}: expected a sequence of steps, found {what}; "
            "only RLDS datasets, one episode a record, are read"
        ) from error
    return steps, episode


def _collect(node: dict[str, Any], key: str, found: dict[str, Spec]) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            _collect(child, f"{key}/{name}" if key else name, found)
        return
    if "classLabel" in node:
        found[key] = Spec("class", (int(node["classLabel"].get("numClasses", 0)),), "int64")
        return
    for kind in ("image", "tensor", "text"):
        if kind in node:
            facts = node[kind]
            dimensions = facts.get("shape", {}).get("dimensions", [])
            # -1 stands for any size.
            shape = tuple(int(size) for size in dimensions)
            dtype = str(facts.get("dtype", ""))
            is_text = kind == "tensor" and dtype in ("string", "object", "str")
            found[key] = Spec("text" if is_text else kind, shape, dtype)
            return
    # A sequence of any length in each step, a video and the like: named as not used.
    other = [kind for kind in node if kind not in ("pythonClassName", "description")]
    found[key] = Spec(other[0] if other else "nothing", (), "")


def _vector_keys(
    specs: Mapping[str, Spec],
    asked: tuple[str, ...],
    usual: tuple[str, ...],
    option: str,
    path: Path,
) -> tuple[tuple[str, int], ...]:
    keys = asked or next(((key,) for key in usual if _is_vector(specs.get(key))), ())
    unknown = [key for key in keys if not _is_vector(specs.get(key))]
    if unknown or not keys:
        there = ", ".join(key for key, spec in specs.items() if _is_vector(spec))
        wrong = next((key for key in unknown or usual if key in specs), None)
        if wrong is not None:
            found = f"{wrong}, {specs[wrong]}"
        else:
            found = f"{unknown[0]!r}" if unknown else f"none of {', '.join(usual)}"
        raise UserError(
            f"{path / 'features.json'}: expected vectors for {option}, found {found}; "
            f"name some of: {there or 'none there'}"
        )
    return tuple((key, math.prod(specs[key].shape)) for key in keys)


def _is_vector(spec: Spec | None) -> bool:
    if spec is None or spec.kind != "tensor" or any(size < 1 for size in spec.shape):
        return False
    if len(spec.shape) > 2:  # pixels
        return False
    return spec.dtype.startswith(("float", "double", "int", "uint", "bool"))


def _cameras(specs: Mapping[str, Spec]) -> tuple[dict[str, str], dict[str, str]]:
    """Colour images by camera, and the images that are none: observation/image_x is "x",
    observation/image "primary"."""
    found, other = [], {}
    for key, spec in specs.items():
        is_pixels = spec.kind == "tensor" and spec.dtype == "uint8" and len(spec.shape) == 3
        if spec.kind != "image" and not is_pixels:
            continue
        if spec.dtype not in ("uint8", "") or is_depth_name(key):
            other[key] = f"no colour camera: depth, {spec}"
            continue
        if spec.shape[-1:] == (1,) or (is_pixels and spec.shape[-1] not in (3, 4)):
            other[key] = f"no colour camera: {spec}"
            continue
        found.append(key)
    cameras = camera_names(found, _camera_name)
    return dict(sorted(cameras.items(), key=lambda item: (item[0] != "primary", item[0]))), other


def _camera_name(key: str) -> str:
    match = re.fullmatch(r"observation/image(?:s?[/_](?P<name>.+))?", key)
    return (match["name"] or "primary") if match else key.removeprefix("observation/")


def _text_key(specs: Mapping[str, Spec], asked: str, texts: tuple[str, ...], path: Path) -> str:
    """The full key of a feature that holds instructions: a text, a class or a whole number."""
    key = next((key for key in (f"steps/{asked}", asked) if key in specs), None)
    spec = None if key is None else specs[key]
    is_number = spec is not None and (
        spec.kind == "class" or spec.dtype.startswith(("int", "uint"))
    )
    if key is None or spec is None or not (spec.kind == "text" or is_number):
        found = f"{asked}, {spec}" if spec else f"{asked!r}"
        named = ", ".join(text.removeprefix("steps/") for text in texts) or "none"
        raise UserError(
            f"{path / 'features.json'}: expected a text or a number for instruction_key, found "
            f"{found}; features with texts: {named}"
        )
    return key
