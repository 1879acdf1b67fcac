"""The loop of camera, policy and arm, over many scenes at once.

A scene is solved if the fingertip is at the named cube after the last step: within `REACHED` of the
middle of its upper face. Passing by does not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workloads.vla.reach import arm
from workloads.vla.reach.render import SceneCamera
from workloads.vla.reach.scene import Scene

STEPS = 8
REACHED = 0.04  # m; cubes lie at least three times as far apart

# images uint8 [N, H, W, 3], instructions, states float32 [N, 8] → actions [N, chunk, 8] in rad
Act = Callable[[np.ndarray, Sequence[str], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SceneRollouts:
    """Results of N scenes: distances [N] in m at the end; images [shown, steps + 1, H, W, 3]
    of the first scenes."""

    distances: np.ndarray
    images: np.ndarray

    @property
    def won(self) -> np.ndarray:
        """bool [N]."""
        return self.distances <= REACHED


def roll_out(
    scenes: Sequence[Scene],
    act: Act,
    instructions: Sequence[str] | None = None,
    shown: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> SceneRollouts:
    """Let a policy move the arm in every scene; whole chunks of actions are executed.

    instructions: instead of the scenes' own.
    """
    instruction_texts = (
        [scene.instruction for scene in scenes] if instructions is None else instructions
    )
    cameras = [SceneCamera(scene) for scene in scenes]
    joints = np.stack([scene.start for scene in scenes])
    kept: list[list[np.ndarray]] = []
    chunk: list[np.ndarray] = []
    for _ in range(STEPS):
        if not chunk:
            images = _images(cameras, joints)
            actions = act(images, instruction_texts, joints.astype(np.float32))
            chunk = list(np.moveaxis(actions, 1, 0))
        kept.append(_shown(cameras, joints, shown))
        joints = arm.moved(joints, chunk.pop(0))
        progress()
    kept.append(_shown(cameras, joints, shown))
    return SceneRollouts(distances_of(scenes, joints), np.swapaxes(np.array(kept), 0, 1))


def distances_of(scenes: Sequence[Scene], joints: np.ndarray) -> np.ndarray:
    """Distances [N] in m of the fingertips at joint positions [N, 8] from the goals."""
    goals = np.stack([scene.goal for scene in scenes])
    return np.asarray(np.linalg.norm(arm.fingertip(joints) - goals, axis=1))


def _images(cameras: Sequence[SceneCamera], joints: np.ndarray) -> np.ndarray:
    return np.stack([camera.image(now) for camera, now in zip(cameras, joints, strict=True)])


def _shown(cameras: Sequence[SceneCamera], joints: np.ndarray, count: int) -> list[np.ndarray]:
    return [camera.image(now) for camera, now in list(zip(cameras, joints, strict=True))[:count]]
