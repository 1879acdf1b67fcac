"""The reach task with a goal that is shown only at first, which needs a memory.

In two frames the goal is lit while the arm is still; then the arm moves for eight steps. The
controls are the same model before training, the trained one with another cube of the scene lit,
with none, and with a memory that is emptied at every step.
"""

from collections.abc import Callable, Sequence

import numpy as np

from workloads.vla.episodes import PolicyEpisode, act
from workloads.vla.policy import Observation, Policy
from workloads.vla.reach import arm
from workloads.vla.reach.closed_loop import SceneRollouts, distances_of
from workloads.vla.reach.demonstrations import CUES, RECALL_STEPS
from workloads.vla.reach.judge import SHOWN, TRAINED, UNTRAINED, TaskVerdict, counting, score
from workloads.vla.reach.policies import statistics_key
from workloads.vla.reach.render import SceneCamera
from workloads.vla.reach.scene import Scene, recall_scene

OTHER_CUE, NO_CUE, FORGETS = "another cube lit", "no cube lit", "memory emptied each step"
CONTROLS = (UNTRAINED, OTHER_CUE, NO_CUE, FORGETS)
_BATCH = 50


def judge_recall(
    trained: Policy,
    untrained: Policy,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskVerdict:
    """Let the policy and its controls act in `count` scenes that no demonstration has.

    progress: called with the steps done and their total. Raises UserError as `statistics_key`.
    """
    scenes = tuple(recall_scene(seed, number, "evaluation") for number in range(count))
    step = counting(progress, (CUES + RECALL_STEPS) * (1 + len(CONTROLS)))
    rollouts = {
        TRAINED: roll_out(scenes, trained, 0, shown=SHOWN, progress=step),
        UNTRAINED: roll_out(scenes, untrained, 0, progress=step),
        OTHER_CUE: roll_out(scenes, trained, 1, progress=step),
        NO_CUE: roll_out(scenes, trained, None, progress=step),
        FORGETS: roll_out(scenes, trained, 0, forgets=True, progress=step),
    }
    scores = {name: score(rollout) for name, rollout in rollouts.items()}
    return TaskVerdict(
        scores, scenes, rollouts[TRAINED], seed, "recall", CONTROLS, CUES + RECALL_STEPS
    )


def roll_out(
    scenes: Sequence[Scene],
    policy: Policy,
    lit: int | None,
    forgets: bool = False,
    shown: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> SceneRollouts:
    """Let a policy move the arm in every scene, each an episode of its own.

    lit: the cube that is lit in the first frames; forgets: every frame is the first of an episode.
    """
    key = statistics_key(policy)
    cues = [SceneCamera(scene, lit=lit) for scene in scenes]
    cameras = [SceneCamera(scene) for scene in scenes]
    joints = np.stack([scene.start for scene in scenes])
    episodes = [PolicyEpisode(policy.new_memory()) for _ in scenes]
    kept: list[list[np.ndarray]] = []
    for step in range(CUES + RECALL_STEPS):
        seeing = cues if step < CUES else cameras
        images = [camera.image(now) for camera, now in zip(seeing, joints, strict=True)]
        kept.append(images[:shown])
        if forgets:
            episodes = [PolicyEpisode(policy.new_memory()) for _ in scenes]
        seen = [
            Observation({policy.cameras[0]: image}, scene.instruction, now.astype(np.float32))
            for image, scene, now in zip(images, scenes, joints, strict=True)
        ]
        actions = np.concatenate(
            [
                act(policy, episodes[at : at + _BATCH], seen[at : at + _BATCH], key)
                for at in range(0, len(seen), _BATCH)
            ]
        )
        if step >= CUES:  # until then the arm does not move
            joints = arm.moved(joints, actions)
        progress()
    last = zip(cameras[:shown], joints[:shown], strict=True)
    kept.append([camera.image(now) for camera, now in last])
    return SceneRollouts(distances_of(scenes, joints), np.swapaxes(np.array(kept), 0, 1))
