"""CALVIN's sequences, first scenes, figures and door and light tasks are the official ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from workloads.vla.calvin import seen_tasks, sequences, success_rates
from workloads.vla.calvin.scenes import ROBOT_OBS, hashed_text, seed_of

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "calvin_eval"


def _read(name: str) -> dict:  # type: ignore[type-arg]
    return json.loads((HERE / name).read_text())  # type: ignore[no-any-return]


def test_sequences_and_scenes() -> None:
    expected = _read("eval_sequences_40.json")
    assert list(ROBOT_OBS) == expected["robot_obs"]
    found = sequences(40)
    assert len(found) == len(expected["sequences"]) == 40
    for own, other in zip(found, expected["sequences"], strict=True):
        state, tasks = own
        assert state == other["initial_state"] and list(tasks) == other["sequence"]
        assert own.instructions == other["instructions"]
        assert hashed_text(state) == other["hashed"] and seed_of(state) == other["seed"]
        assert np.abs(own.scene_obs - other["scene_obs"]).max() <= 1e-12


def test_success_rates() -> None:
    expected = _read("success_rates.json")
    shares, length = success_rates(expected["results"])
    assert np.allclose(shares, expected["count_success"], atol=1e-12, rtol=0)
    assert abs(length - expected["avg_len"]) <= 1e-12


@pytest.mark.parametrize("case", _read("oracle.json"), ids=lambda case: case["name"])
def test_oracle(case: dict) -> None:  # type: ignore[type-arg]
    assert seen_tasks(case["start"], case["end"]) == set(case["tasks"])
