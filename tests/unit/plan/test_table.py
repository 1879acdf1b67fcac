"""What people read of a plan: no zeros, plain words."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from workloads.cli import main

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
PROFILES = sorted(path.stem for path in ROOT.glob("profiles/**/*.yaml"))
PLACES = {"laptop": [], "4090": ["--gpu", "rtx-4090"], "h100s": ["--gpu", "h100", "--gpus", "2"]}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_reads_without_zeros(
    name: str, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["--rows", "500", "--price", "0.4"] if PLACES[place] else []
    assert main(["plan", name, *PLACES[place], *words]) in (0, 1)
    told = capsys.readouterr().out
    assert not re.search(r"(?<![\d.,])-?0(\.0+)? (s|min|h|MiB|GiB|GPU)\b|\$0\.00", told), told
    if place == "laptop":
        assert "no GPU is here to compare with" in told
    else:
        assert "steps of" in told and "TFLOP/s" in told and "$0.40 an hour" in told


def test_exact_says_what_its_step_is_without(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step itself is in tests/unit/engine/fake_step."""
    monkeypatch.chdir(ROOT)
    facts = {"allocated": 7 << 30, "beside": 2 << 30, "phase": "backward", "operation": "mm"}
    facts |= {"reserved": 8 << 30, "reserved_in_blocks": 9 << 30}
    done = subprocess.CompletedProcess([], 0, stdout=json.dumps(facts), stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    words = ["parallel.strategy=zero3", "parallel.ranks_per_node=4", "train.compile=true"]
    main(["plan", "llm-4090", "--exact", *words])
    told = capsys.readouterr().out
    assert "one step on fake tensors: 7.00 GiB allocated" in told
    assert "+2.00 GiB of it are by the formulas: DeepSpeed's buckets, and what zero3" in told
    assert "the step is without train.compile, which the formulas count" in told
    assert "activation_offloading" not in told


def test_how_compiling_is_counted_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    main(["plan", "llm-4090", "train.compile=true"])
    assert "torch.compile counted as fused norms and activations" in capsys.readouterr().out
