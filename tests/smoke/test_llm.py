"""The llm workload from profile to exported model, by the command a user types."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from tests.support.processes import ONE_RANK, ROOT, Training, events, rows
from workloads.cli import main

pytestmark = pytest.mark.smoke

WHOLE = ("export.enabled=true", "evaluation.task=gsm8k", "evaluation.rows=4")
BRIEF = ("evaluation.max_new_tokens=8", "train.max_steps=8")


def tatara(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """One command, as a user types it."""
    command = [sys.executable, "-m", "workloads.cli", *words]
    full = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, cwd=ROOT, env=full, capture_output=True, text=True)


def test_two_nodes_shard_train_evaluate_and_export(tmp_path: Path) -> None:
    training = Training(tmp_path, [*WHOLE, *BRIEF, "evaluation.before=true"]).end()
    run = training.run
    assert {event["when"] for event in events(run, "evaluated")} == {"before", "after"}
    (start,) = events(run, "training")
    assert start["strategy"] == "fsdp2" and start["world_size"] == 2
    assert start["sharded_parameters"] == start["parameters"] > 0, "parameters are DTensors"
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out loss" in training.console and str(run.final) in training.console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.final)
    tokenizer = AutoTokenizer.from_pretrained(run.final)
    assert model.num_parameters() == start["parameters"]
    assert tokenizer.chat_template
    asked = tatara("eval", "gsm8k", "--run", str(run.path), "--rows", "2", "--max-new-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    assert "share of right answers" in asked.stdout


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("adapter.method=lora", "parallel.strategy=ddp"), id="lora on two nodes"),
        pytest.param(
            (*ONE_RANK, "train.precision=bf16", "train.gradient_checkpointing=true"),
            id="bf16 with checkpointing",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*ONE_RANK, "train.fused_cross_entropy=false", "optim.schedule=constant"),
            id="plain loss",
            marks=pytest.mark.slow,
        ),
        pytest.param(("adapter.method=lora",), id="lora sharded", marks=pytest.mark.slow),
    ],
)
def test_ways_to_train(tmp_path: Path, words: tuple[str, ...]) -> None:
    training = Training(tmp_path, [*words, "export.enabled=true", "train.max_steps=8"]).end()
    losses = [row["loss"] for row in rows(training.run.metrics) if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert (training.run.final / "model.safetensors").is_file()


def test_values_of_the_environment_reach_optimizer_and_loader(tmp_path: Path) -> None:
    """LEARNING_RATE and BATCH_SIZE from `.env`, seen in the run's files with their source."""
    words = [*ONE_RANK, "train.max_steps=2", "optim.warmup_steps=0"]
    command = [word for word in words if not word.startswith("train.per_device")]
    env = {"LEARNING_RATE": "3e-5", "TATARA__TRAIN__SEED": "7"}
    training = Training(tmp_path, [*command, "--batch_size", "2"], env=env).end()
    (start,) = events(training.run, "training")
    assert {group["initial_lr"] for group in start["param_groups"]} == {3e-5}
    assert start["per_device_batch_size"] == 2
    sources = json.loads((training.run.path / "config.json").read_text())["provenance"]
    assert sources["optim.learning_rate"] == "environment LEARNING_RATE"
    assert sources["train.per_device_batch_size"] == "command line --batch_size"
    assert sources["train.seed"] == "environment TATARA__TRAIN__SEED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "profiles/nothing.yaml"], "no such file"),
        (["train", "profiles/demo.yaml", "optim.lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["check", "profiles/demo.yaml", "data.source=data/none.jsonl"], "data/none.jsonl"),
        (["train", "profiles/demo.yaml", "--resume", "nothing"], "found no 'nothing'"),
        (["bake"], "unknown command 'bake'"),
        (["eval", "gsm9k"], "unknown task"),
        (["export", "nothing"], "expected a run"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    done = tatara(*words, TATARA_OUTPUTS=str(tmp_path))
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    good = (ROOT / "data" / "demo" / "gsm8k.jsonl").read_text().splitlines()[:60]
    data.write_text("\n".join([*good[:3], '{"question": "x"', *good[3:]]) + "\n")
    source = (f"data.source={data}", "data.max_bad_rows=0")
    assert main(["check", "profiles/demo.yaml", "--deep", *source]) == 2
    assert f"{data}:4" in capsys.readouterr().out
    training = Training(tmp_path / "run", [*ONE_RANK, *source]).end(expected=2)
    assert f"{data}:4" in training.console and "Traceback" not in training.console


def test_a_wrong_token_ends_with_2_before_any_step(tmp_path: Path) -> None:
    """On a hub of our own: the model is gated and the account has not been let in."""
    with FakeHub({"owner/gated": ROOT / "data/demo/tiny-llama"}, gated=["owner/gated"]) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": OTHER_TOKEN}
        training = Training(tmp_path / "run", [*ONE_RANK, "model.name=owner/gated"], env=env)
        training.end(expected=2)
    assert "owner/gated" in training.console and "Traceback" not in training.console
    everything = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(OTHER_TOKEN.encode() in content for content in everything)


@pytest.mark.slow
def test_a_run_ends_on_the_hub(tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": GOOD_TOKEN}
        words = [*ONE_RANK, "export.enabled=true", "export.push=saves"]
        words += ["export.hub_model_id=me/model"]
        training = Training(tmp_path / "run", words, env=env).end()
    final = training.run.final
    assert hub.pushed["me/model"]["model.safetensors"] == (final / "model.safetensors").read_bytes()
    assert "pushed to" in training.console and GOOD_TOKEN not in training.everything()


@pytest.mark.slow
def test_a_tracker_that_never_answers_stops_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        training = Training(tmp_path, [*ONE_RANK, "tracking.wandb=online"], env=env).end()
    assert len([row for row in rows(training.run.metrics) if "loss" in row]) == 24
