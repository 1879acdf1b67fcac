"""Demonstrations of the reach task, as CRANE-X7 recordings that every reader here knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workloads.data.robot.converting import whole_folder
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.json_files import read_json
from workloads.vla.reach import arm
from workloads.vla.reach.expert import demonstration
from workloads.vla.reach.render import SIZE, SceneCamera
from workloads.vla.reach.scene import COLOURS, CUBES, Scene, recall_scene, scene

# Written last: a folder with it is complete, with the facts of its generation.
FACTS = "reach.json"
CAMERA = "primary"
STEPS = 4
FPS = 5.0
_QUALITY = 95
CUES = 2  # frames that show the goal lit, the arm still
RECALL_STEPS = 8
Task = Literal["reach", "recall"]
# Incremented when the same arguments no longer give the same episodes.
_VERSIONS: dict[Task, int] = {"reach": 2, "recall": 3}


def facts(episodes: int, seed: int, task: Task = "reach") -> dict[str, Any]:
    """Facts of the generation; the same for the same images and joints."""
    return {
        "task": task,
        "version": _VERSIONS[task],
        "episodes": episodes,
        "seed": seed,
        "steps": STEPS if task == "reach" else CUES + RECALL_STEPS,
        "size": SIZE,
        "colours": list(COLOURS),
    }


def generate(
    folder: Path,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], None],
    task: Task = "reach",
) -> bool:
    """Write episodes to `folder`, all or none; returns False where they exist already.

    task: reach, the cube that the instruction names; recall, the cube that is lit in the first
    frames.

    Raises UserError where the folder holds something else.
    """
    wanted = facts(episodes, seed, task)
    if (folder / FACTS).is_file() and read_json(folder / FACTS) == wanted:
        return False
    with whole_folder(folder) as partial:
        for number in range(episodes):
            target = partial / f"episode_{number:04d}"
            if task == "reach":
                _write(target, scene(seed, number, "demonstrations"))
            else:
                own = recall_scene(seed, number, "demonstrations")
                _write_recall(target, own, pushed_to=number % CUBES)
            progress(number + 1, episodes)
        (partial / FACTS).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return True


def _write(folder: Path, scene: Scene) -> None:
    """Write one episode; its last step is the placeholder that recorders write."""
    joints = demonstration(scene, STEPS)
    frames = {CAMERA: SceneCamera(scene).images(joints)}
    write_episode(folder, joints, frames, scene.instruction, fps=FPS, quality=_QUALITY)


def _write_recall(folder: Path, scene: Scene, pushed_to: int) -> None:
    """Write one episode that begins with the cue; the arm is still until it ends.

    The action is always the goal's posture, but the arm is pushed to a cube by the episode's
    number: an arm that went to the goal would reveal it, and a policy would follow the visible arm
    instead of remembering.
    """
    moving = demonstration(scene, RECALL_STEPS - 1, pushed_to)
    joints = np.concatenate([np.repeat(moving[:1], CUES, axis=0), moving])
    images = SceneCamera(scene, lit=0).images(joints[:CUES]) + SceneCamera(scene).images(
        joints[CUES:]
    )
    actions = np.tile(arm.reaching(scene.goal), (len(joints), 1))
    frames = {CAMERA: images}
    write_episode(
        folder, joints, frames, scene.instruction, actions=actions, fps=FPS, quality=_QUALITY
    )
