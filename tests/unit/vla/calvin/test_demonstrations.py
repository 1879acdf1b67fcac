"""The script's demonstrations, written as CALVIN's data is and read as such."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import recorded_calvin
from workloads.cli import main
from workloads.data.robot.opening import open_dataset
from workloads.errors import UserError
from workloads.vla.calvin import demonstrations
from workloads.vla.calvin.client import SimulatorPlace
from workloads.vla.calvin.demonstrations import SCRIPTED, generate
from workloads.vla.calvin.tasks import TASKS

pytestmark = pytest.mark.unit


def place(solves: str) -> SimulatorPlace:
    return SimulatorPlace((sys.executable, recorded_calvin.__file__, "--solves", solves))


def quiet(done: int, total: int) -> None:
    """No word of how far it is."""


def test_they_are_read_as_calvins_data_and_do_not_depend_on_processes(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    assert generate(folder, 7, 3, place("_"), 1, quiet)
    assert not generate(folder, 7, 3, place("_"), 1, quiet)
    assert not (tmp_path / "one.logs").exists() and not (tmp_path / "one.partial").exists()
    found = open_dataset(folder)
    assert len(found) == 7 and found.cameras == ("static", "gripper")
    for number in range(7):
        episode = found.episode(number)
        task = SCRIPTED[number % len(SCRIPTED)]
        assert episode.name.endswith(task) and episode.said[0] == TASKS[task].instruction
        assert episode.states.shape == (4, 15) and episode.actions.shape == (4, 7)
        assert (episode.actions[-1] == [0, 0, 0, 0, 0, 0, -1]).all()
    facts = json.loads((folder / "script.json").read_text())
    assert facts["frames"] == 28 and facts["simulator"]["renderer"] == "recording"
    generate(tmp_path / "two", 7, 3, place("_"), 2, quiet)
    for file in folder.rglob("*.np[yz]"):
        other = tmp_path / "two" / file.relative_to(folder)
        if file.suffix == ".npz":
            with np.load(file) as one, np.load(other) as two:
                assert all(np.array_equal(one[name], two[name]) for name in one.files)
        else:
            assert file.read_bytes() == other.read_bytes()
    with pytest.raises(UserError, match="expected an empty folder, found files"):
        generate(folder, 8, 3, place("_"), 1, quiet)


def test_a_task_that_the_script_never_solves_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstrations, "STEPS", 5)
    with pytest.raises(UserError, match="turn_on_led: expected the script to solve it"):
        generate(tmp_path / "data", 2, 0, place("block"), 1, quiet)
    assert not (tmp_path / "data").exists()


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(args: Any, env: Any) -> SimulatorPlace:
        assert args.env_python == Path(sys.executable)
        return place("_")

    monkeypatch.setattr("workloads.commands.data_generate.place_of", here)
    words = ["data", "generate", "calvin", str(tmp_path / "data"), "--env-python", sys.executable]
    assert main([*words, "--episodes", "2", "--processes", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 2 episodes\n"
