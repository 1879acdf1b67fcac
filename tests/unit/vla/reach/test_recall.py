"""The goal is shown at first and gone later: who remembers it wins, nobody else does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.vla.reach.test_judge import Looking
from workloads.data.robot import open_dataset
from workloads.vla.policy import Observation
from workloads.vla.reach import arm, sheet
from workloads.vla.reach.closed_loop import REACHED
from workloads.vla.reach.demonstrations import CUES, RECALL_STEPS, facts, generate
from workloads.vla.reach.judge import TRAINED, UNTRAINED, table, write
from workloads.vla.reach.recall import CONTROLS, FORGETS, NO_CUE, OTHER_CUE, judge_recall
from workloads.vla.reach.scene import COLOURS, recall_scene

pytestmark = pytest.mark.unit


class Remembering(Looking):
    """Keeps the colour of the cube that is lit, and goes to it."""

    name = "remembering"
    is_chunked = False
    binary = ()
    remembers = True

    def new_memory(self) -> Any:
        return {}

    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        assert memories is not None
        return np.stack([self._step(*pair) for pair in zip(observations, memories, strict=True)])

    def _step(self, seen: Observation, memory: dict[str, str]) -> np.ndarray:
        image = seen.images["primary"].astype(int)
        light = np.argwhere((image[..., 0] > 200) & (image[..., 1] > 150))
        if len(light) > 50:
            middle = light.mean(axis=0)
            memory["goal"] = min(
                COLOURS, key=lambda name: np.linalg.norm(_middle(image, name) - middle)
            )
        if "goal" not in memory:
            assert seen.state is not None
            return seen.state[None].astype(np.float64)
        told = f"reach the {memory['goal']} cube"
        return self._one(Observation(seen.images, told, seen.state))


def _middle(image: np.ndarray, colour: str) -> np.ndarray:
    """The middle of a colour's pixels, (down, right)."""
    return np.argwhere(np.abs(image - COLOURS[colour]).max(axis=-1) < 60).mean(axis=0)


def test_who_remembers_wins_and_no_control_does(tmp_path: Path) -> None:
    verdict = judge_recall(Remembering(), Remembering(seeing=False), 20, 0)
    scores = verdict.scores
    assert scores[TRAINED].success >= 0.9
    for control in (UNTRAINED, OTHER_CUE, NO_CUE, FORGETS):
        assert scores[control].success <= 0.1, control
    assert set(scores) == {TRAINED, *CONTROLS} and verdict.best_control in CONTROLS
    assert write(verdict, tmp_path).name == "recall.json"
    assert "20 scenes of seed 0, 10 steps each" in table(verdict)
    with Image.open(sheet.draw(verdict, tmp_path)) as drawn:
        assert drawn.width > 11 * 96  # every step and the end


def test_the_middle_of_the_cubes_is_near_none_of_them() -> None:
    for number in range(50):
        scene = recall_scene(1, number, "evaluation")
        gaps = np.linalg.norm(scene.places - scene.places.mean(axis=0), axis=1)
        assert gaps.min() > 1.2 * REACHED and set(scene.colours) == set(COLOURS)
        assert "red" not in scene.instruction
        top = np.array([*scene.places[0], 0.06])
        assert np.allclose(arm.fingertip(arm.reaching(top)), top, atol=1e-6)
    assert {recall_scene(0, n, "evaluation").colours[0] for n in range(20)} == set(COLOURS)


def test_demonstrations_light_the_goal_while_the_arm_is_still(tmp_path: Path) -> None:
    assert generate(tmp_path / "d", 2, 3, lambda done, total: None, "recall")
    assert not generate(tmp_path / "d", 2, 3, lambda done, total: None, "recall")
    assert facts(2, 3, "recall")["steps"] == CUES + RECALL_STEPS
    for episode in open_dataset(tmp_path / "d"):
        assert len(episode) == CUES + RECALL_STEPS
        images = [episode.image("primary", t).astype(int) for t in range(len(episode))]
        lit = [((image[..., 0] > 200) & (image[..., 1] > 150)).sum() for image in images]
        # The fingertip is white.
        assert min(lit[:CUES]) > 200 and max(lit[CUES:]) < 60
        states = episode.states
        assert states is not None
        assert np.array_equal(states[0], states[CUES]) and not np.array_equal(states[2], states[3])


def test_demonstrations_say_where_the_goal_is_in_actions_alone(tmp_path: Path) -> None:
    """An arm that went to the goal would tell it: a policy would copy the arm that it sees."""
    generate(tmp_path / "d", 6, 3, lambda done, total: None, "recall")
    ended_at = []
    for number, episode in enumerate(open_dataset(tmp_path / "d")):
        scene = recall_scene(3, number, "demonstrations")
        goals = np.tile(arm.reaching(scene.goal), (len(episode), 1))
        assert np.allclose(episode.actions, goals, atol=1e-6)
        assert episode.states is not None
        tip = arm.fingertip(episode.states[-1])[:2]
        ended_at.append(int(np.linalg.norm(scene.places - tip, axis=1).argmin()))
    assert ended_at == [0, 1, 2, 0, 1, 2]
