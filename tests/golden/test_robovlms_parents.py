"""Configs inherit as RoboVLMs' own evaluation has it."""

import json
from pathlib import Path

import pytest

from workloads.vla.robovlms import import_config

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "parents"
EXPECTED = json.loads((HERE / "parents_expected.json").read_text())


@pytest.mark.parametrize("name", ["child.json", "override.json"])
@pytest.mark.parametrize("from_its_folder", [True, False])
def test_parents(name: str, from_its_folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if from_its_folder:
        monkeypatch.chdir(HERE)
    found = import_config(name if from_its_folder else HERE / name)
    assert found == EXPECTED[f"{name} (utils)"]
    # In the order of the reference too, which a table follows.
    assert json.dumps(found) == json.dumps(EXPECTED[f"{name} (utils)"])
