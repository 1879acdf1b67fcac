"""RECIPE in the environment: another profile in place of one that lists `recipes:`.

It names one (`24gb`, `vla-24gb`, or a path); `auto` takes the first of the list that fits the GPU.
`python -m workloads.plan.recipes PROFILE` prints the profile to train.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from workloads import device, environment
from workloads.config.merge import resolve
from workloads.config.yaml_source import load_mapping, value_of
from workloads.device import GIB
from workloads.errors import TataraError, UserError
from workloads.plan.estimate import SAFE, Breakdown, estimate, fits, gib

FOLDER = Path("profiles/recipes")
# Sizes that cards are sold in.
_CARDS = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141, 192)


def recipes_of(profile: Path) -> tuple[str, ...]:
    """The recipes that a profile's file lists, the most capable first; none where it lists none."""
    if not profile.is_file():
        return ()
    for key, value in load_mapping(profile, str(profile)).value:
        if key.value == "recipes" and isinstance(value, yaml.SequenceNode):
            return tuple(str(value_of(item)) for item in value.value)
    return ()


def fitting_recipe(
    memory: int, names: Sequence[str], model: str | None = None, folder: Path = FOLDER
) -> Path | None:
    """The first recipe whose predicted need fits `memory` bytes of one GPU; None where none does.

    model: a name that takes the recipes' own one's place.
    """
    needs = _needs(names, model, folder)
    return next((path for path, need in needs if fits(need, memory)), None)


def _needs(names: Sequence[str], model: str | None, folder: Path) -> list[tuple[Path, Breakdown]]:
    """Recipes with the plan of each."""
    paths = [folder / f"{name}.yaml" for name in names]
    changes = {"model.name": model} if model else {}
    return [(path, estimate(resolve(path, {}, changes)[0], 1)) for path in paths if path.is_file()]


def plan_comment(path: Path) -> str:
    """The comment in a recipe's file with its plan, from shapes known offline.

    Raises UserError where the model's shape is unknown.
    """
    config, _ = resolve(path, {})
    plan = estimate(config, None, {"HF_HUB_OFFLINE": "1"})
    if plan.unknown:
        raise UserError(f"{path}: {plan.unknown}")
    card = next(size for size in _CARDS if plan.gpu.total <= (1 - SAFE) * size * GIB)
    gpus = "one GPU" if plan.world_size == 1 else f"each of {plan.world_size} GPUs"
    return f"# Plan: {gib(plan.gpu.total)} of {gpus}, so cards of {card} GB; disk {gib(plan.disk)}."


def smallest_gpu(env: Mapping[str, str]) -> int | None:
    """Bytes of the smallest GPU, by NVML; None where there is none."""
    return min((gpu.total for gpu in device.gpus(env)), default=None)


def chosen(
    profile: Path,
    env: Mapping[str, str],
    memory: Callable[[Mapping[str, str]], int | None] = smallest_gpu,
) -> Path:
    """The profile that RECIPE selects; the given one where that is not set or it has no recipes.

    memory: bytes of the smallest GPU, asked for by RECIPE=auto alone. Raises UserError for an
    unknown recipe, and for auto where none fits.
    """
    wanted = env.get("RECIPE", "")
    names = recipes_of(profile) if wanted else ()
    if not names:
        return profile
    if wanted == "auto":
        return _automatic(profile, names, env, memory(env))
    for path in (Path(wanted), FOLDER / f"{wanted}.yaml", FOLDER / f"{profile.stem}-{wanted}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in FOLDER.glob(f"{profile.stem}-*.yaml")))
    raise UserError(f"RECIPE: expected auto or one of {known}, found {wanted!r}")


def _automatic(
    profile: Path, names: Sequence[str], env: Mapping[str, str], memory: int | None
) -> Path:
    if memory is None:
        return profile
    model = env.get("MODEL_NAME") or None
    found = fitting_recipe(memory, names, model)
    if found is None:
        path, need = _needs(names, model, FOLDER)[-1]
        least = f"{need.total / GIB:.1f} GiB" if need.total else f"what is unknown: {need.unknown}"
        raise UserError(
            f"RECIPE=auto: expected a recipe for a GPU of {memory / GIB:.1f} GiB, found none; the "
            f"smallest, {path.stem}, needs {least}: take a larger GPU or a smaller model"
        )
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the profile to train in place of the one that is named."""
    try:
        print(chosen(Path(arguments[0]), environment.load(os.environ)))
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
