"""The file names of other guides, in scripts/vla: they print the command, and run it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.robot_data import crane_episode

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).resolve().parents[2] / "scripts/vla"


def typed(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python3 WORDS` in a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("finetune", FOLDER / "finetune.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    yield found
    sys.modules.pop("finetune_config", None)


def test_finetune_prints_and_becomes_the_command() -> None:
    done = typed(FOLDER, "finetune.py", "--batch_size", "16", "--no_such_flag", "1")
    assert done.stdout.startswith("tatara train profiles/vla.yaml --batch_size 16 --no_such_flag 1")
    assert done.returncode == 2 and "unknown flag '--no_such_flag'" in done.stderr


def test_only_the_first_rank_of_torchrun_starts_anything() -> None:
    done = typed(FOLDER, "finetune.py", LOCAL_RANK="1", RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ranks_and_nodes_are_those_of_torchrun(module: Any) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    one = {**ranks, "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "MASTER_PORT": "1"}
    assert module.environment({**one, "HOME": "/h"}) == {"HOME": "/h", "NPROC_PER_NODE": "2"}
    two = {**one, "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "a"}
    assert module.environment(two) == {
        "NPROC_PER_NODE": "2", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }  # fmt: skip


def test_settings_of_the_file_become_flags(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = module.finetune_config
    assert config.flags() == []
    monkeypatch.setattr(config, "gradient_checkpointing", True)
    monkeypatch.setattr(config, "batch_size", 4)
    assert config.flags() == ["--batch_size=4", "--gradient_checkpointing=true"]


def test_the_flags_of_the_guide_are_settings(tmp_path: Path) -> None:
    from workloads.config.merge import resolve

    flags = ["--batch_size=4", "--gradient_checkpointing", "--lora_rank", "16", "--num_epochs=2"]
    config, _ = resolve(FOLDER.parents[1] / "profiles/vla.yaml", {}, flags)
    assert config.train.gradient_checkpointing and config.adapter.r == 16
    assert (config.train.per_device_batch_size, config.train.epochs) == (4, 2)


def test_a_look_at_the_recordings(tmp_path: Path) -> None:
    crane_episode(tmp_path / "logs/episode_0000_a")
    done = typed(tmp_path, str(FOLDER / "crane_x7_dataset.py"), "logs", TATARA_CACHE=str(tmp_path))
    assert done.stdout.startswith(f"tatara data inspect {tmp_path}/logs\n")
    assert "1 episodes, 5 steps" in done.stdout and done.returncode == 0
