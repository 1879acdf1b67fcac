"""Settings that are each valid and together do not do what they seem to are told by check."""

import json
from pathlib import Path
from typing import Any

import pytest

from workloads.config.sections import Export, Profile, Tracking
from workloads.llm.check import deep, shallow
from workloads.llm.config import LlmConfig

pytestmark = pytest.mark.unit
TINY = Path(__file__).resolve().parents[3] / "data" / "demo" / "tiny-llama"


def told(tmp_path: Path, read: bool = False, **sections: Any) -> list[str]:
    """What check says beside reports, after reading the rows where that is asked for."""
    source = tmp_path / "rows.jsonl"
    rows = [{"question": f"Q{i}?", "answer": "A"} for i in range(20)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(source), **sections.pop("data", {})}
    values = {
        "workload": "llm",
        "name": "t",
        "model": {"name": str(TINY), "random_init": True},
        "data": data,
    }
    config = LlmConfig.model_validate({**values, **sections})
    env = {"TATARA_CACHE": str(tmp_path / "cache")}
    found = shallow(config, env) + (deep(config, env) if read else [])
    return [item.line() for item in found if item.level != "ok"]


def test_a_warm_up_longer_than_the_run_is_told(tmp_path: Path) -> None:
    """L-S12"""
    warm = {"optim": {"warmup_steps": 100}}
    found = told(tmp_path, train={"max_steps": 3}, **warm)
    assert len(found) == 1 and "optim.warmup_steps" in found[0] and "3%" in found[0]
    assert not told(tmp_path, train={"max_steps": 200}, **warm)
    assert not told(tmp_path, train={"max_steps": 3}, optim={"warmup_steps": 0.1})
    found = told(tmp_path, read=True, train={"per_device_batch_size": 4}, **warm)
    assert len(found) == 1 and "100 of 5 steps" in found[0]


def test_keep_best_without_checkpoints_on_the_way_is_told(tmp_path: Path) -> None:
    """L-S16"""
    held = {"data": {"eval_rows": 4}, "evaluation": {"every_steps": 2}}
    found = told(tmp_path, **held)
    assert len(found) == 1 and "checkpoints.every_steps=2" in found[0]
    assert not told(tmp_path, checkpoints={"every_steps": 2}, **held)


def test_the_head_as_target_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """L-F11"""
    adapter = {"method": "lora", "targets": ["q_proj", "lm_head"]}
    (found,) = told(tmp_path, adapter=adapter)
    assert found.startswith("ERROR") and "modules_to_save=[lm_head]" in found
    (found,) = told(tmp_path, read=True, adapter={"method": "lora", "targets": ["query"]})
    assert "'query'" in found and "q_proj" in found


def test_early_stopping_and_samples_without_evaluations_are_told(tmp_path: Path) -> None:
    found = told(tmp_path, data={"eval_rows": 4}, evaluation={"patience": 2, "samples": 3})
    assert len(found) == 2 and all("evaluation.every_steps" in line for line in found)
    (found,) = told(tmp_path, export={"checkpoint": "best"})  # type: ignore[assignment]
    assert "export.checkpoint" in found


@pytest.mark.parametrize("word", ["yes", "on", "True", "1", 1, True])
def test_switches_take_the_words_that_all_others_take(word: Any) -> None:
    """L-S14"""
    assert Tracking(wandb=word).wandb == "online"
    assert Export(push=word, hub_model_id="me/m").push == "end"


@pytest.mark.parametrize("word", ["no", "off", "False", "0", 0, False])
def test_switches_take_the_words_for_off(word: Any) -> None:
    """L-S14"""
    assert Tracking(wandb=word).wandb == "off" and Export(push=word).push == "never"


def test_a_name_that_no_folder_can_have_is_refused_in_words() -> None:
    """L-S15"""
    with pytest.raises(ValueError, match="expected letters a to z, digits") as caught:
        Profile.model_validate({"workload": "llm", "name": "対話", "model": {"name": "m"}})
    assert "^[A-Za-z" not in str(caught.value)
