"""Two steps of training on datasets with faults from the field: what it says, and that it refuses
what `tatara check --deep` refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import crane_cases, lerobot_cases, rlds_cases
from tests.support.inline import as_one_rank, train_inline

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profiles/recipes/vla-tiny.yaml"
CASES = {**lerobot_cases.CASES, **rlds_cases.CASES, **crane_cases.CASES}
SETTINGS = (
    "train.max_steps=2",
    "train.per_device_batch_size=2",
    "evaluation.every_steps=null",
    "tracking.tensorboard=false",
)
DROID = "data.state_keys=[observation/joint_position,observation/gripper_position]"


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_one_rank(monkeypatch)
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("case", "words", "said"),
    [
        ("V-A05", (), "cameras used: top; instructions: 'pick the cube'"),
        ("V-A11", (), "observation.images.depth (no colour camera: depth)"),
        ("V-A22", (), "x6 hardly moves"),
        ("V-A30", (), "cameras used: wrist (left out: front)"),
        ("V-B01", ("data.instruction_key=task_description",), "'stack the red block'"),
        ("V-B11", (DROID,), "'put the marker in the cup'"),
        ("V-B12", (), "steps to train on"),
        ("V-B14", (), "several instructions"),
        ("V-E04", (), "cameras used: primary"),
        ("V-F02", (), "cameras used: primary"),
    ],
)
def test_two_steps(tmp_path: Path, case: str, words: tuple[str, ...], said: str) -> None:
    CASES[case](tmp_path / case)
    settings = (f"data.source={tmp_path / case}", *SETTINGS, *words)
    done = train_inline(PROFILE, tmp_path / "run", *settings)
    assert done.error is None and [row["step"] for row in done.rows] == [1, 2]
    assert said in done.console


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("V-A10", "found 100 of 120"),
        ("V-A21", "17 frames for 20 rows"),
        ("V-A26", "expected a camera"),
        ("V-B01", "expected an instruction in every episode, found none in 4 of 4"),
        ("V-B04", "2 of 6 episodes lost"),
    ],
)
def test_what_is_refused(tmp_path: Path, case: str, said: str) -> None:
    CASES[case](tmp_path / case)
    done = train_inline(PROFILE, tmp_path / "run", f"data.source={tmp_path / case}", *SETTINGS)
    assert done.error is not None and done.error.exit_code == 2
    assert said in str(done.error)


def test_a_refusal_as_a_user_meets_it(tmp_path: Path) -> None:
    CASES["V-A10"](tmp_path / "V-A10")
    env = {**os.environ, "TATARA_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workloads.cli", "train", str(PROFILE), *SETTINGS]
    command += [f"data.source={tmp_path / 'V-A10'}", "export.enabled=false"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "found 100 of 120" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
