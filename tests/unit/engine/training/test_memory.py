"""What a run writes of its memory."""

import json
from pathlib import Path

import pytest

from tests.support.planning import SIZES, profile
from workloads.engine.training.memory import memory_facts

pytestmark = pytest.mark.unit


def test_a_run_writes_the_moments_of_its_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    facts = memory_facts(profile(tmp_path, model=str(tmp_path)), 1)
    totals = [sum(moment["parts"].values()) for moment in facts["moments"]]
    assert max(totals) == facts["planned"]["allocated"]
