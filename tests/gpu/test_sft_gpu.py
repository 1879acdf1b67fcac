"""Supervised fine-tuning where there is an NVIDIA GPU: trained, stopped, planned, packed."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu._sft_cases import CASES, OURS, TRL, Case
from bench.gpu._sft_sides import take_turn
from tests.support.processes import ONE_RANK, Training, events, rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]

# Wide enough that what is measured is the model and not a kernel's workspace.
SMALL = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2816,
    "vocab_size": 16000,
    "tie_word_embeddings": True,
}
STEPS = 12


def small(name: str) -> Case:
    """A case of the benchmark on a model that any card holds."""
    case = CASES[name]
    return replace(case, shape=SMALL, length=1024, batch=4, mean=200 if case.mean else None)


def losses(training: Training) -> list[float]:
    return [row["loss"] for row in rows(training.run.metrics) if "loss" in row]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("train.precision=bf16",), id="bf16"),
        pytest.param(("train.precision=fp16",), id="fp16"),
        pytest.param(("train.precision=bf16", "data.packing=true"), id="packed"),
        pytest.param(("train.precision=bf16", "adapter.method=lora"), id="lora"),
    ],
)
def test_the_demo_learns_and_is_exported(tmp_path: Path, words: tuple[str, ...]) -> None:
    training = Training(tmp_path, [*ONE_RANK, *words, "export.enabled=true"]).end()
    found = losses(training)
    assert len(found) == 24 and found[-1] < found[0]
    assert (training.run.final / "model.safetensors").is_file()
    facts = json.loads((training.run.path / "status" / "0.json").read_text())
    assert facts["phase"] == "done"


def test_stopped_and_resumed_reaches_the_end(tmp_path: Path) -> None:
    part = Training(tmp_path, [*ONE_RANK, "train.precision=bf16"])
    part.until_step(5)
    part.signal(signal.SIGTERM)
    part.end(expected=3)
    stopped = events(part.run, "stop requested")[0]["step"]
    again = Training(tmp_path, [*ONE_RANK, "train.precision=bf16"], resume=True).end()
    assert f"going on from checkpoint-{stopped}" in again.console
    assert {row["step"] for row in rows(again.run.metrics) if "loss" in row} == set(range(1, 25))


@pytest.mark.parametrize("name", ["full", "lora"])
def test_planned_memory_is_what_a_step_takes(name: str) -> None:
    case = small(name)
    planned = case.plan().allocated
    measured = take_turn(case, OURS, STEPS).peak
    assert planned is not None
    assert abs(planned / measured - 1) < 0.1, f"planned {planned:,}, measured {measured:,}"


@pytest.mark.parametrize("name", ["full", "short", "lora"])
def test_the_loss_is_that_of_trl_on_padded_rows(name: str) -> None:
    """Packed rows do not see each other, whichever attention was chosen."""
    case = small(name)
    ours, peer = take_turn(case, OURS, STEPS), take_turn(case, TRL, STEPS)
    assert ours.loss == pytest.approx(peer.loss, rel=2e-3)
    assert ours.rate > 0 and peer.peak > 0
