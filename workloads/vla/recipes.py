"""Which recipe fits a GPU: `tatara train "$(python -m workloads.vla.recipes)"` takes it.

RECIPE names one by itself (`24gb`, `vla-24gb`, or a path); `auto` takes the first that fits.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workloads import device, plan
from workloads.config import resolve
from workloads.errors import TataraError, UserError

FOLDER = Path("profiles/recipes")
# The most capable first; those for several GPUs and for OFT are asked for by name.
BY_SIZE = ("vla-80gb", "vla-40gb", "vla-24gb", "vla-16gb")
_GIB = 1 << 30


def fitting_recipe(memory: int, model: str | None = None, folder: Path = FOLDER) -> Path | None:
    """The first recipe whose predicted need fits `memory` bytes of one GPU; None where none does.

    model: a name that takes the recipes' own one's place.
    """
    for name in BY_SIZE:
        path = folder / f"{name}.yaml"
        if not path.is_file():
            continue
        config, _ = resolve(path, {}, {"model.name": model} if model else {})
        if plan.fits(plan.estimate(config, 1), memory):
            return path
    return None


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
    memory = min(gpu.total for gpu in gpus)
    found = fitting_recipe(memory, env.get("MODEL_NAME") or None)
    if found is None:
        raise UserError(
            f"RECIPE=auto: no recipe fits a GPU of {memory / _GIB:.1f} GiB; the smallest needs "
            "about 12 GiB"
        )
    return str(found)


def main() -> int:
    try:
        print(chosen(os.environ))
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
