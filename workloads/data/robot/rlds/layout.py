"""Which features of an RLDS data set are states, actions and pictures, by its features.json."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.data.robot.episode import Options
from workloads.json_files import read_json
from workloads.errors import UserError

STATE_KEYS = ("observation/proprio", "observation/state", "observation/joint_state")
ACTION_KEYS = ("action",)


@dataclass(frozen=True)
class Spec:
    """One feature of a step: kind "tensor", "image" or "text", its shape and type."""

    kind: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layout:
    """Which features of a step are used; keys are without the leading `steps/`."""

    states: tuple[tuple[str, int], ...]  # key, values a step
    actions: tuple[tuple[str, int], ...]
    cameras: dict[str, str]


def read_layout(path: Path, options: Options) -> Layout:
    """What the features.json of a folder has of what `options` ask for; UserError if nothing."""
    specs = _step_specs(read_json(path / "features.json"), path)
    states = _vector_keys(specs, options.state_keys, STATE_KEYS, "state_keys", path)
    actions = _vector_keys(specs, options.action_keys, ACTION_KEYS, "action_keys", path)
    return Layout(states, actions, _cameras(specs))


def _step_specs(features: dict[str, Any], path: Path) -> dict[str, Spec]:
    """The features of a step by key, from features.json; those of other kinds are left out."""
    try:
        steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        found: dict[str, Spec] = {}
        _collect(steps, "", found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path / 'features.json'}: expected a sequence of steps, found {what}; "
            "only RLDS data sets, one episode a record, are read"
        ) from error
    return found


def _collect(node: dict[str, Any], key: str, found: dict[str, Spec]) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            _collect(child, f"{key}/{name}" if key else name, found)
        return
    for kind in ("image", "tensor", "text"):
        if kind in node:
            facts = node[kind]
            dimensions = facts.get("shape", {}).get("dimensions", [])
            # -1 stands for any size.
            shape = tuple(int(size) for size in dimensions)
            found[key] = Spec(kind, shape, str(facts.get("dtype", "")))


def _vector_keys(
    specs: dict[str, Spec],
    asked: tuple[str, ...],
    usual: tuple[str, ...],
    option: str,
    path: Path,
) -> tuple[tuple[str, int], ...]:
    keys = asked or next(((key,) for key in usual if _is_vector(specs.get(key))), ())
    unknown = [key for key in keys if not _is_vector(specs.get(key))]
    if unknown or not keys:
        there = ", ".join(key for key, spec in specs.items() if _is_vector(spec))
        found = f"{unknown[0]!r}" if unknown else f"none of {', '.join(usual)}"
        raise UserError(
            f"{path / 'features.json'}: expected vectors for {option}, found {found}; "
            f"name some of: {there or 'none there'}"
        )
    return tuple((key, math.prod(specs[key].shape)) for key in keys)


def _is_vector(spec: Spec | None) -> bool:
    if spec is None or spec.kind != "tensor" or any(size < 1 for size in spec.shape):
        return False
    return spec.dtype.startswith(("float", "double", "int", "uint", "bool"))


def _cameras(specs: dict[str, Spec]) -> dict[str, str]:
    """Colour pictures by camera: observation/image_x is "x", observation/image "primary"."""
    found = {}
    for key, spec in specs.items():
        if spec.kind != "image" or spec.dtype not in ("uint8", "") or spec.shape[-1:] == (1,):
            continue
        match = re.fullmatch(r"observation/image(?:s?[/_](?P<name>.+))?", key)
        name = (match["name"] or "primary") if match else key.removeprefix("observation/")
        found[name] = key
    return dict(sorted(found.items(), key=lambda item: (item[0] != "primary", item[0])))
