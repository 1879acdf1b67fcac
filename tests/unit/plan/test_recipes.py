"""RECIPE takes the profile that fits the GPU; what fits none is refused before any download."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.robot_data import crane_episode
from workloads import device
from workloads.cli import main
from workloads.commands.common import profile_path
from workloads.device import Gpu
from workloads.errors import UserError

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The project's folder, a dataset, and a GPU of any size; nothing can be asked or started."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing may be asked of a network, and nothing started")

    def with_gpu(gib: float) -> Path:
        one = Gpu(0, "GPU-0", "stand-in", int(gib * GIB), int(gib * GIB), (8, 9))
        monkeypatch.setattr(device, "gpus", lambda env=os.environ: (one,) if gib else ())
        return crane_episode(tmp_path / "logs/episode_0000_a").parent.parent

    monkeypatch.chdir(ROOT)
    for name in ("RECIPE", "MODEL_NAME", "BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("workloads.launch.supervisor.launch", refuse)
    return with_gpu


@pytest.mark.parametrize(
    ("gib", "recipe"), [(15.9, "16gb"), (23.6, "24gb"), (44.5, "40gb"), (79.2, "80gb")]
)
def test_auto_takes_the_first_that_fits(machine: Any, gib: float, recipe: str) -> None:
    machine(gib)
    found = profile_path("vla", {"RECIPE": "auto"})
    assert found == Path(f"profiles/recipes/vla-{recipe}.yaml")


def test_auto_without_a_gpu_is_the_profile_itself(machine: Any) -> None:
    machine(0)
    assert profile_path("vla", {"RECIPE": "auto"}) == Path("profiles/vla.yaml")


def test_a_recipe_is_named_shortly_and_only_for_vla(machine: Any) -> None:
    for name in ("oft", "vla-oft", "profiles/recipes/vla-oft.yaml"):
        found = profile_path("profiles/vla.yaml", {"RECIPE": name})
        assert found == Path("profiles/recipes/vla-oft.yaml")
    assert profile_path("demo", {"RECIPE": "oft"}) == Path("profiles/demo.yaml")
    assert profile_path("vla-24gb", {"RECIPE": "oft"}) == Path("profiles/recipes/vla-24gb.yaml")
    with pytest.raises(UserError, match="RECIPE: expected auto or one of vla-16gb.*found '7gb'"):
        profile_path("vla", {"RECIPE": "7gb"})


def test_nothing_fits_a_small_gpu(machine: Any) -> None:
    machine(4)
    with pytest.raises(UserError, match="a GPU of 4.0 GiB, found none; the smallest, vla-16gb"):
        profile_path("vla", {"RECIPE": "auto"})


@pytest.mark.parametrize(("gib", "recipe"), [(15.9, "16gb"), (23.6, "24gb")])
def test_what_cannot_fit_is_refused_and_what_fits_is_named(
    machine: Any, capsys: pytest.CaptureFixture[str], gib: float, recipe: str
) -> None:
    logs = machine(gib)
    assert main(["train", "profiles/vla.yaml", f"data.source={logs}"]) == 2
    told = capsys.readouterr().err
    assert f"{gib:.1f} GiB in the GPU; fix: train profiles/recipes/vla-{recipe}.yaml" in told
    assert "this profile cannot start" in told and "RECIPE=auto" in told
    os.environ["RECIPE"] = "auto"
    try:
        assert main(["check", "profiles/vla.yaml", f"data.source={logs}"]) in (0, 2)
    finally:
        del os.environ["RECIPE"]
    told = capsys.readouterr()
    assert f"RECIPE=auto: profiles/recipes/vla-{recipe}.yaml" in told.err
    assert "ERROR   memory" not in told.out


def test_scripts_ask_for_the_profile() -> None:
    command = [sys.executable, "-m", "workloads.plan.recipes", "profiles/vla.yaml"]
    env = {**os.environ, "RECIPE": "24gb"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("profiles/recipes/vla-24gb.yaml\n", 0)
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"RECIPE": "x"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("tatara: RECIPE: expected auto")


def test_any_profile_may_list_recipes(machine: Any, tmp_path: Path) -> None:
    machine(23.6)
    own = tmp_path / "mine.yaml"
    own.write_text(f"recipes: [vla-80gb, vla-24gb]\n{Path('profiles/demo.yaml').read_text()}")
    assert profile_path(str(own), {"RECIPE": "auto"}) == Path("profiles/recipes/vla-24gb.yaml")
    assert profile_path(str(own), {"RECIPE": "vla-16gb"}).stem == "vla-16gb"
    assert profile_path(str(own), {}) == own
