"""Success rates of a policy beside controls without image, instruction or training.

The controls are the same model before training, the mean of all demonstrated actions, the trained
policy with a blank image, and the trained policy with the instruction for another cube. A policy
that uses image and instruction succeeds, while no control does.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workloads.engine.summary import interval
from workloads.vla.policy import Observation, Policy
from workloads.vla.reach.closed_loop import REACHED, STEPS, Act, SceneRollouts, roll_out
from workloads.vla.reach.policies import statistics_key
from workloads.vla.reach.scene import Scene, instruction, scene

TRAINED, UNTRAINED = "trained", "untrained"
MEAN, BLANK, SHUFFLED = "mean action", "blank image", "shuffled instruction"
CONTROLS = (UNTRAINED, MEAN, BLANK, SHUFFLED)
SHOWN = 8
# Observations in one forward pass.
_BATCH = 50
_GREY = 127


@dataclass(frozen=True)
class Score:
    """The number of scenes solved; the median of the final distances, in m."""

    won: int
    scenes: int
    median_distance: float

    @property
    def success(self) -> float:
        """Share of the scenes, 0..1."""
        return self.won / self.scenes

    @property
    def range(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate, 0..1."""
        return interval(self.success, self.scenes)


@dataclass(frozen=True)
class TaskVerdict:
    """Scores by name, the trained policy's first, and its rollouts over `scenes`."""

    scores: Mapping[str, Score]
    scenes: tuple[Scene, ...]
    rollouts: SceneRollouts
    seed: int
    task: str = "reach"
    controls: tuple[str, ...] = CONTROLS
    steps: int = STEPS

    @property
    def best_control(self) -> str:
        """The control with the most solved scenes; of several the first."""
        return max(self.controls, key=lambda name: self.scores[name].won)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        scores = {
            name: {
                "success": score.success,
                "low": score.range[0],
                "high": score.range[1],
                "won": score.won,
                "median_distance": score.median_distance,
            }
            for name, score in self.scores.items()
        }
        return {
            "task": self.task,
            "scenes": len(self.scenes),
            "seed": self.seed,
            "steps": self.steps,
            "reached": REACHED,
            "scores": scores,
            "won": self.rollouts.won.tolist(),
            "distances": self.rollouts.distances.tolist(),
        }


def judge(
    trained: Policy,
    untrained: Policy,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskVerdict:
    """Let the policy and its controls act in `count` scenes that no demonstration has.

    progress: called with the steps done and their total. Raises UserError as `statistics_key`.
    """
    scenes = tuple(scene(seed, number, "evaluation") for number in range(count))
    step = counting(progress, STEPS * (1 + len(CONTROLS)))
    others = [_another(item) for item in scenes]
    rollouts = {
        TRAINED: roll_out(scenes, acting(trained), shown=SHOWN, progress=step),
        UNTRAINED: roll_out(scenes, acting(untrained), progress=step),
        MEAN: roll_out(scenes, _mean_action(trained), progress=step),
        BLANK: roll_out(scenes, _blinded(acting(trained)), progress=step),
        SHUFFLED: roll_out(scenes, acting(trained), others, progress=step),
    }
    scores = {name: score(rollout) for name, rollout in rollouts.items()}
    return TaskVerdict(scores, scenes, rollouts[TRAINED], seed)


def counting(progress: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """A function to call after each step, which reports the steps so far and `total`."""
    steps = itertools.count(1)
    return lambda: progress(next(steps), total)


def acting(policy: Policy) -> Act:
    """A policy as a function for one roll-out, with its CRANE-X7 statistics.

    Each scene is an episode, with a memory of its own from the first call on.
    """
    key = statistics_key(policy)
    memories: list[Any] = []

    def act(images: np.ndarray, instructions: Sequence[str], states: np.ndarray) -> np.ndarray:
        if not memories:
            memories.extend(policy.new_memory() for _ in images)
        asked = [
            Observation({policy.cameras[0]: image}, text, state)
            for image, text, state in zip(images, instructions, states, strict=True)
        ]
        batches = [slice(at, at + _BATCH) for at in range(0, len(asked), _BATCH)]
        return np.concatenate([policy.act(asked[batch], key, memories[batch]) for batch in batches])

    return act


def _mean_action(policy: Policy) -> Act:
    mean = np.asarray(policy.action_statistics(statistics_key(policy))["mean"])
    return lambda images, instructions, states: np.tile(mean, (len(states), 1, 1))


def _blinded(act: Act) -> Act:
    return lambda images, instructions, states: act(
        np.full_like(images, _GREY), instructions, states
    )


def _another(scene: Scene) -> str:
    """The instruction for another cube of the scene than the named one."""
    return instruction(scene.colours[1])


def score(rollouts: SceneRollouts) -> Score:
    """The score of finished rollouts."""
    won = rollouts.won
    return Score(int(won.sum()), len(won), float(np.median(rollouts.distances)))


def table(verdict: TaskVerdict) -> str:
    """Table of the success of the policy and each control, with 95 % intervals."""
    wide = max(len(name) for name in verdict.scores)
    lines = [f"{'':<{wide}}  success  95 % range        off by (median)"]
    for name, score in verdict.scores.items():
        low, high = score.range
        lines.append(
            f"{name:<{wide}}  {score.success:7.1%}  {low:6.1%} to {high:6.1%}  "
            f"{100 * score.median_distance:5.1f} cm"
        )
    lines.append(
        f"{len(verdict.scenes)} scenes of seed {verdict.seed}, {verdict.steps} steps each; success "
        f"is a fingertip within {100 * REACHED:.0f} cm of the middle of the goal at the end"
    )
    return "\n".join(lines)


def write(verdict: TaskVerdict, folder: Path) -> Path:
    """Write the scores as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{verdict.task}.json"
    target.write_text(json.dumps(verdict.as_dict(), indent=1) + "\n", encoding="utf-8")
    return target
