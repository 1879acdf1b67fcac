"""Demonstrations of the reach task, as CRANE-X7 recordings that every reader here knows."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads.data.robot.crane_x7.writer import write_episode
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.reach.expert import demonstration
from workloads.vla.reach.render import SIZE, Camera
from workloads.vla.reach.scene import COLOURS, Scene, scene

# Written last: a folder with it is whole, and says how it was made.
FACTS = "reach.json"
CAMERA = "primary"
STEPS = 4
FPS = 5.0
_QUALITY = 95
_VERSION = 2  # raised where the same arguments no longer give the same episodes


def facts(episodes: int, seed: int) -> dict[str, Any]:
    """How demonstrations are made; the same for the same images and joints."""
    return {
        "task": "reach",
        "version": _VERSION,
        "episodes": episodes,
        "seed": seed,
        "steps": STEPS,
        "size": SIZE,
        "colours": list(COLOURS),
    }


def generate(folder: Path, episodes: int, seed: int, progress: Callable[[int, int], None]) -> bool:
    """Write so many episodes to `folder`, whole or not at all; False where they are there already.

    Raises UserError where something else is there.
    """
    wanted = facts(episodes, seed)
    if (folder / FACTS).is_file() and read_json(folder / FACTS) == wanted:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: expected an empty folder or the same demonstrations, found other files; "
            "name another folder, or remove it"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"expected a folder to write to, found {error}; name another") from None
    for number in range(episodes):
        _write(partial / f"episode_{number:04d}", scene(seed, number, "demonstrations"))
        progress(number + 1, episodes)
    (partial / FACTS).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    if folder.is_dir():
        folder.rmdir()
    os.replace(partial, folder)
    return True


def _write(folder: Path, one: Scene) -> None:
    """One episode; its last step is the placeholder that recorders write."""
    joints = demonstration(one, STEPS)
    frames = {CAMERA: Camera(one).images(joints)}
    write_episode(folder, joints, frames, one.instruction, fps=FPS, quality=_QUALITY)
