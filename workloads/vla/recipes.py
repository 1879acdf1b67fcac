"""Which recipe trains the policy: RECIPE in the environment, for `tatara train profiles/vla.yaml`.

It names one (`24gb`, `vla-24gb`, or a path); `auto` takes the first that fits the GPU.
`python -m workloads.vla.recipes` prints the profile.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workloads import device, environment
from workloads.config.merge import resolve
from workloads.errors import TataraError, UserError
from workloads.plan.estimate import Breakdown, estimate, fits

FOLDER = Path("profiles/recipes")
# The most capable first; those for several GPUs and for OFT are asked for by name.
BY_SIZE = ("vla-80gb", "vla-40gb", "vla-24gb", "vla-16gb")
_GIB = 1 << 30


def fitting_recipe(memory: int, model: str | None = None, folder: Path = FOLDER) -> Path | None:
    """The first recipe whose predicted need fits `memory` bytes of one GPU; None where none does.

    model: a name that takes the recipes' own one's place.
    """
    needs = _needs(model, folder)
    return next((path for path, need in needs if fits(need, memory)), None)


def _needs(model: str | None, folder: Path) -> list[tuple[Path, Breakdown]]:
    """The recipes for one GPU, the most capable first, with what is predicted for each."""
    paths = [folder / f"{name}.yaml" for name in BY_SIZE]
    changes = {"model.name": model} if model else {}
    return [(path, estimate(resolve(path, {}, changes)[0], 1)) for path in paths if path.is_file()]


def chosen(env: Mapping[str, str], default: str = "profiles/vla.yaml") -> str:
    """The profile that RECIPE asks for; `default` where it is not set."""
    wanted = env.get("RECIPE", "")
    if not wanted:
        return default
    if wanted == "auto":
        return _automatic(env, default)
    for path in (Path(wanted), FOLDER / f"{wanted}.yaml", FOLDER / f"vla-{wanted}.yaml"):
        if path.is_file():
            return str(path)
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("vla-*.yaml")))
    raise UserError(f"RECIPE: expected auto or one of {known}, found {wanted!r}")


def _automatic(env: Mapping[str, str], default: str) -> str:
    gpus = device.gpus(env)
    if not gpus:
        return default
    memory, model = min(gpu.total for gpu in gpus), env.get("MODEL_NAME") or None
    found = fitting_recipe(memory, model)
    if found is None:
        path, need = _needs(model, FOLDER)[-1]
        least = f"{need.total / _GIB:.1f} GiB" if need.total else f"what is unknown: {need.unknown}"
        raise UserError(
            f"RECIPE=auto: expected a recipe for a GPU of {memory / _GIB:.1f} GiB, found none; the "
            f"smallest, {path.stem}, needs {least}: take a larger GPU or a smaller model"
        )
    return str(found)


def main() -> int:
    try:
        print(chosen(environment.load(os.environ)))
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
