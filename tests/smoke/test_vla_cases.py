"""Two steps of training on datasets with faults from the field: what it says, and that it refuses
what `tatara check --deep` refuses."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
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
def one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As a job with one rank, and without walks through all objects that torch has made, which take
    half the time of a training of two steps."""
    as_one_rank(monkeypatch)
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))
    gc.freeze()
    yield
    gc.unfreeze()


LFS = "a Git LFS pointer in place of the file"
MASK = "data.action_mask=[true,true,true,true,true,true,false]"
# case: further settings, and texts that the training says
TRAINED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "V-A04": ((), ("cameras used: top; instructions: 'pick the cube'", "top 64 x 48")),
    "V-A05": ((), ("cameras used: top; instructions: 'pick the cube'", "10 steps a second")),
    "V-A06": ((), ("cameras used: top",)),
    "V-A07": ((), ("says 30 Hz", "say 10 Hz")),
    "V-A09": ((), ("2 of 2 episodes have several instructions", "'put the block in'")),
    "V-A11": ((), ("cameras used: top;", "observation.images.depth (no colour camera: depth)")),
    "V-A13": ((), ("cameras used: top;",)),
    "V-A20": ((), ("states: none",)),
    "V-A22": ((), ("x6 hardly moves",)),
    "V-A23": ((), ("actions: x0, x1, x2, x3, x4, x5, x6 (7, unit as recorded)",)),
    "V-A27": ((), ("actions: main_0, main_1, main_2, main_3, main_4, main_5 (6,",)),
    "V-A28": ((), ("x5 jumps between -pi and pi",)),
    "V-A30": ((), ("cameras used: wrist (left out: front)",)),
    "V-A32": ((), ("12 said, 20 found",)),
    "V-B01": (("data.instruction_key=task_description",), ("'stack the red block'",)),
    "V-B08": (("data.instruction=open the lid",), ("'open the lid' stands in",)),
    "V-B11": ((DROID,), ("'put the marker in the cup'",)),
    "V-B12": ((), ("3 episodes, 36 steps to train on", "states: none")),
    "V-B14": ((), ("4 of 4 episodes have several instructions", "'take the cup'")),
    "V-D01": ((), ("primary 640 x 480", "gripper (8, unit rad); states: the same")),
    "V-E04": ((), ("cameras used: primary", "primary 64 x 48")),
    "V-F02": ((), ("cameras used: primary", "2 episodes, 26 steps to train on")),
    "V-F03": ((), ("cameras used: primary", "primary 64 x 48")),
    "V-F06": ((), ("2 episodes, 26 steps to train on",)),
    "V-F08": ((), ("are these degrees?",)),
}
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "V-A10": ((), "found 100 of 120"),
    "V-A14": ((), LFS),
    "V-A15": ((), LFS),
    "V-A16": ((), LFS),
    "V-A18": ((), "expected a column videos/observation.images.top/chunk_index"),
    "V-A21": ((), "17 frames for 20 rows"),
    "V-A23": ((MASK,), "expected action x6, which is not normalised, within -1 to 1"),
    "V-A25": ((), "(7, 7), expected (6, 6)"),
    "V-A26": ((), "expected a camera"),
    "V-A31": ((), "31 of 64"),
    "V-B01": ((), "expected an instruction in every episode, found none in 4 of 4"),
    "V-B04": ((), "2 of 6 episodes lost"),
    "V-B05": ((), "not a readable array_record file"),
    "V-B06": ((), "compressed with gzip; unpack it: mv "),
    "V-B07": ((), "written by an old tensorflow_datasets"),
    "V-B08": ((), "expected an instruction in every episode, found none in 4 of 4"),
    "V-E06": ((), "a class of 5"),
    "V-F07": ((), "compressed with gzip; unpack it: mv "),
}


def test_every_case_is_trained_on_or_refused() -> None:
    assert TRAINED.keys() | REFUSED.keys() == CASES.keys()


@pytest.mark.parametrize("case", TRAINED)
def test_two_steps(tmp_path: Path, case: str) -> None:
    settings, said = TRAINED[case]
    CASES[case](tmp_path / case)
    settings = (f"data.source={tmp_path / case}", *SETTINGS, *settings)
    done = train_inline(PROFILE, tmp_path / "run", *settings)
    assert done.error is None and [row["step"] for row in done.rows] == [1, 2]
    assert [text for text in said if text not in done.console] == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    settings, said = REFUSED[case]
    CASES[case](tmp_path / case)
    settings = (f"data.source={tmp_path / case}", *SETTINGS, *settings)
    done = train_inline(PROFILE, tmp_path / "run", *settings)
    assert done.error is not None and done.error.exit_code == 2
    assert said in str(done.error) and not (tmp_path / "run/metrics.jsonl").exists()


def test_a_refusal_as_a_user_meets_it(tmp_path: Path) -> None:
    CASES["V-A10"](tmp_path / "V-A10")
    env = {**os.environ, "TATARA_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workloads.cli", "train", str(PROFILE), *SETTINGS]
    command += [f"data.source={tmp_path / 'V-A10'}", "export.enabled=false"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "found 100 of 120" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
