"""Closed-loop success and its controls, by a scripted policy that truly looks and listens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_policy import policy_folder
from workloads.cli import main
from workloads.config.merge import resolve
from workloads.engine.summary import interval
from workloads.errors import UserError
from workloads.vla.openvla.config import OftSpec
from workloads.vla.policy import Observation, Policy
from workloads.vla.reach import arm, expert, judge, sheet
from workloads.vla.reach.render import SIZE, project
from workloads.vla.reach.scene import COLOURS, CUBE, FAR, NEAR, SIDE

pytestmark = pytest.mark.unit
COUNT = 40


class Looking(Policy):
    """Finds the named colour in the picture, and goes there as the expert does."""

    def __init__(self, seeing: bool = True) -> None:
        self.cameras = ("primary",)
        self.seeing = seeing
        self.statistics = _mean_of_demonstrations()
        far, side = np.meshgrid(np.linspace(NEAR, FAR, 25), np.linspace(-SIDE, SIDE, 60))
        top = np.full(far.size, CUBE)
        places = [(far * np.cos(side)).ravel(), (far * np.sin(side)).ravel(), top]
        self.places = np.stack(places, axis=1)
        self.pixels, _ = project(self.places, SIZE)

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        return tuple(self.statistics)

    def action_statistics(self, unnorm_key: str | None) -> dict[str, Any]:
        return self.statistics[str(unnorm_key)]["action"]

    def new_memory(self) -> None:
        """It sees all it needs."""

    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        return np.stack([self._one(observation) for observation in observations])

    def _one(self, seen: Observation) -> np.ndarray:
        assert seen.state is not None
        colour = next(name for name in COLOURS if name in seen.instruction)
        picture = seen.images["primary"].astype(int)
        like = np.abs(picture - COLOURS[colour]).sum(axis=2) < 60
        if not self.seeing or not like.any():
            return np.tile(seen.state.astype(float), (1, 1))
        down, right = np.argwhere(like).mean(axis=0) + 0.5
        nearest = np.linalg.norm(self.pixels - (right, down), axis=1).argmin()
        return expert.command(seen.state.astype(float), self.places[nearest])[None]


def _mean_of_demonstrations() -> dict[str, dict[str, dict[str, Any]]]:
    return {"crane_x7": {"action": {"mean": arm.reaching(np.array([0.27, 0.0, CUBE])).tolist()}}}


@pytest.fixture(scope="module")
def verdict() -> judge.TaskVerdict:
    return judge.judge(Looking(), Looking(seeing=False), COUNT, 0)


def test_who_looks_and_listens_wins_and_no_control_does(verdict: judge.TaskVerdict) -> None:
    assert verdict.scores[judge.TRAINED].success >= 0.9
    assert list(verdict.scores) == [judge.TRAINED, *judge.CONTROLS]
    for name in judge.CONTROLS:
        assert verdict.scores[name].success <= 0.15, name


def test_the_same_seed_gives_the_same_verdict(verdict: judge.TaskVerdict) -> None:
    again = judge.judge(Looking(), Looking(seeing=False), COUNT, 0)
    assert again.as_dict() == verdict.as_dict()
    other = judge.judge(Looking(), Looking(seeing=False), COUNT, 1)
    assert other.as_dict()["distances"] != verdict.as_dict()["distances"]


def test_ranges_are_wilsons() -> None:
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(0.0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)


def test_the_table_says_success_and_range_of_each(verdict: judge.TaskVerdict) -> None:
    text = judge.table(verdict)
    for name, score in verdict.scores.items():
        line = next(row for row in text.splitlines() if row.startswith(name))
        assert f"{score.success:.1%}" in line
        assert f"{score.range[0]:.1%} to" in line
    assert f"{COUNT} scenes" in text


def test_scores_and_picture_are_written(verdict: judge.TaskVerdict, tmp_path: Path) -> None:
    kept = json.loads(judge.write(verdict, tmp_path / "evaluation").read_text())
    assert kept["scores"][judge.TRAINED]["won"] == sum(kept["won"])
    assert len(kept["distances"]) == COUNT
    with Image.open(sheet.draw(verdict, tmp_path / "evaluation")) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    for colour in COLOURS.values():
        assert (np.abs(shown - colour).sum(axis=2) < 30).sum() > 50


def test_the_command_judges_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = policy_folder(tmp_path / "policy", oft=OftSpec(8, 2, proprio_dim=8))
    out = tmp_path / "out"
    words = ["eval", "reach", str(folder), "--scenes", "3", "--out", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "shuffled instruction" in text and "3 scenes of seed 0" in text
    assert json.loads((out / "reach.json").read_text())["scenes"] == 3
    assert (out / "reach.png").is_file()


def test_the_task_needs_an_exported_model() -> None:
    with pytest.raises(UserError, match="evaluation.task: it is done by the exported model"):
        resolve("profiles/demo-vla.yaml", {}, ["export.enabled=false"])


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "reach", str(tmp_path), "--scenes", "0"]) == 2
    assert "--scenes: expected at least 1, found 0" in capsys.readouterr().err
    policy = Looking()
    policy.cameras = ("primary", "wrist")
    with pytest.raises(UserError, match="one camera, found primary, wrist"):
        judge.acting(policy)
    policy.statistics = {"bridge_orig": {"action": {"mean": [0.0] * 7}}}
    with pytest.raises(UserError, match="actions of 8 joints, found 7"):
        judge.acting(policy)
