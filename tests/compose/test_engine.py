"""Trainer and engine as two services, with a real vLLM on the CPU: health, steps, a lost engine."""

import json
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.compose.project import Project, arguments, docker
from tests.support.processes import events, rows
from tests.support.tiny_llama import make_model, make_tokenizer
from workloads.run import Run

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1800)]

RATIO = "sampling/importance_sampling_ratio/mean"
FILES = ("compose.yaml", "compose.cpu.yaml")
HERE = Path(__file__).resolve().parent / "vllm_cpu"
PROFILE = """
workload: grpo
model: {name: data/model, attention: eager}
data: {source: data/rows.jsonl}
rewards: ["letters:share"]
grpo: {num_generations: 4, max_prompt_length: 450, max_completion_length: 16}
generation: {engine: vllm_server}
optim: {learning_rate: 1.0e-3}
train: {max_steps: 400, per_device_batch_size: 8, precision: fp32, log_every: 1}
evaluation: {rows: 0}
checkpoints: {every_steps: 2}
parallel: {ranks_per_node: 1, restarts: 0}
export: {enabled: false}
tracking: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def image(images: Callable[[str], None]) -> str:
    """The tag of the service's own image with vLLM for CPUs in it."""
    images("grpo-h100")
    words = ["docker", "build", "-q", "-t", "tatara/grpo-h100:cpu-test", str(HERE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return "cpu-test"


def data_folder(folder: Path) -> Path:
    """A model with weights, which vLLM reads, and a few sums to ask it."""
    shape = {"hidden_size": 128, "intermediate_size": 128}  # heads of 32, the least that vLLM takes
    make_model(**shape).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    sums = [{"problem": f"{a}+{b}", "solution": f"{a + b}"} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (folder / "engine.yaml").write_text(PROFILE)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def rewarded(run: Run) -> list[dict[str, Any]]:
    return [row for row in rows(run.metrics) if "reward" in row]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text[:19])


def refuses_strangers(grpo: Project) -> None:
    """O-A4: to every account of the host the engine says no more than that it is well."""
    address = grpo.address("grpo-vllm")
    spoiling = ("update_weights", "init_weight_transfer_engine", "start_weight_update", "pause")
    for path in (*spoiling, "sleep", "reset_prefix_cache", "v1/completions", "v1/models"):
        answer = requests.post(
            f"http://{address}:8000/{path}", json={"update_info": {}}, timeout=10
        )
        assert answer.status_code == 401, path
    assert requests.get(f"http://{address}:8000/health", timeout=10).status_code == 200


def test_the_trainer_waits_for_the_engine_and_names_it_when_it_dies(
    project: Callable[..., Project], image: str, tmp_path: Path
) -> None:
    grpo = project(
        "grpo-h100",
        FILES,
        TATARA_TAG=image,
        TATARA_PROFILE="data/engine.yaml",
        TATARA_DATA=str(data_folder(tmp_path / "data")),
        **arguments(),
    )
    grpo.compose("up", "--detach", "--no-build", "grpo-vllm", "grpo-h100", timeout=900)
    engine, trainer = grpo.inspect("grpo-vllm"), grpo.inspect("grpo-h100")
    assert engine["State"]["Health"]["Status"] == "healthy"
    well = next(look for look in engine["State"]["Health"]["Log"] if look["ExitCode"] == 0)
    assert moment(trainer["State"]["StartedAt"]) >= moment(well["End"])

    run = grpo.run("engine")
    grpo.until(lambda: len(rewarded(run)) >= 4, "four steps with rewards")
    # What the engine samples with is what the trainer has learnt, update after update.
    assert any(row["grad_norm"] > 0 for row in rewarded(run))
    assert all(abs(row[RATIO] - 1) < 0.02 for row in rewarded(run))
    refuses_strangers(grpo)
    reached = len(rewarded(run))
    grpo.until(lambda: len(rewarded(run)) >= reached + 2, "further steps")
    docker("kill", grpo.container("grpo-vllm"))
    seconds = grpo.until(lambda: bool(events(run, "failed")), "word of the engine", 120)
    assert seconds < 60
    reason = events(run, "failed")[0]["reason"]
    assert "generation engine at http://grpo-vllm:8000 is dead or hangs" in reason
    grpo.ends(grpo_h100=75)
