"""QLoRA over a base in nf4 that two ranks share by FSDP2, on the CPU: trained, stopped, resumed."""

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Training, events, losses, state

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.optional,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_spec("bitsandbytes") is None,
        reason="NOT RUN: needs bitsandbytes; `make test-full` installs it and runs this",
    ),
]
WORDS = (
    "adapter.method=qlora",
    "adapter.targets=all-linear",
    "parallel.nodes=1",
    "parallel.ranks_per_node=2",
    "parallel.strategy=fsdp2",
    "export.enabled=true",
    "train.max_steps=8",
    "checkpoints.every_steps=4",
    "evaluation.every_steps=4",
    "evaluation.samples=0",
    "model.random_init=false",
)


def trained_base(folder: Path) -> Path:
    """A whole model's folder: quantising wants weights that were saved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = ROOT / "data" / "demo" / "tiny-arithmetic"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.runs("tatara export RUN --merge")
def test_two_ranks_share_a_4_bit_base_and_resume_bit_for_bit(tmp_path: Path) -> None:
    words = [*WORDS, f"model.name={trained_base(tmp_path / 'base')}"]
    whole = Training(tmp_path / "whole", words).end()
    (start,) = events(whole.run, "training")
    assert start["strategy"] == "fsdp2" and start["world_size"] == 2
    assert start["sharded_parameters"] > 0
    found = losses(whole.run)
    assert len(found) == 8 and found[8][0] < found[1][0], "it learns"

    part = Training(tmp_path / "part", words, fault="wait:4:0")
    part.until_step(3)
    part.signal(signal.SIGTERM)
    part.end(expected=3)
    resumed = Training(tmp_path / "part", words, resume=True).end()
    assert "going on from checkpoint-" in resumed.console
    assert losses(resumed.run) == found
    assert state(resumed.run) == state(whole.run)

    assert (whole.run.final / "adapter_model.safetensors").is_file()
    assert not (whole.run.final / "model.safetensors").exists()
    command = [sys.executable, "-m", "workloads.cli", "export", str(whole.run.path), "--merge"]
    command += ["--output", str(tmp_path / "merged")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert "quantised" in done.stdout + done.stderr, "compared with the base that was trained over"
