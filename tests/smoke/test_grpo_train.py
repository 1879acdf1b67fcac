"""The grpo workload by the command a user types: a tiny language model on sums in words."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.support.processes import (
    INJECT,
    ROOT,
    Training,
    events,
    losses,
    rows,
    state,
    steps,
)
from tests.support.tiny_llava import write_llava
from workloads.grpo.data.rows import generate_scenes, write_imagefolder
from workloads.grpo.rollouts.rollouts import read_rollouts

pytestmark = pytest.mark.smoke

PROFILE = """\
workload: grpo
summary: a tiny Llama is rewarded for letters up to m
model: {{name: data/demo/tiny-llama, random_init: true}}
data: {{source: {rows}}}
rewards:
  - {{name: "tests.smoke.test_grpo_train:share_of_early_letters", weight: 2}}
  - accuracy_extracted
  - format
grpo: {{num_generations: 2, max_prompt_length: 256, max_completion_length: 6}}
optim: {{learning_rate: 1e-2}}
train:
  max_steps: {steps}
  per_device_batch_size: 2
  global_batch_size: 4
  precision: fp32
parallel: {{ranks_per_node: 1, restart_delay: 0.1}}
tracking: {{tensorboard: false}}
"""


def share_of_early_letters(completion: str) -> float:
    """A reward that a model without any knowledge earns now and then."""
    return sum(letter in "abcdefghijklm" for letter in completion) / max(1, len(completion))


class GrpoTraining(Training):
    """`tatara train` of a profile of this file, without the demo's settings."""

    def __init__(
        self,
        profile: Path,
        outputs: Path,
        words: Sequence[str] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.outputs = outputs
        outputs.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
        env |= more or {}
        command = [sys.executable, "-m", "workloads.cli", "train", str(profile), *words]
        self.log = outputs / "console.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def profile(folder: Path, steps: int, count: int = 5) -> Path:
    """Five rows make two steps an epoch, so that three steps reach into the second epoch."""
    lines = [
        {"problem": f"What is {term} + {term}?", "solution": f"<answer> {2 * term} </answer>"}
        for term in range(1, count + 1)
    ]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "sums.yaml"
    path.write_text(PROFILE.format(rows=data, steps=steps))
    return path


def test_three_steps_of_text_grpo_write_rewards_rollouts_and_a_model(tmp_path: Path) -> None:
    training = GrpoTraining(profile(tmp_path, 3), tmp_path / "out").end()
    run = training.run
    table = [row for row in rows(run.metrics) if "loss" in row]
    assert [row["step"] for row in table] == [1, 2, 3]
    name = "tests.smoke.test_grpo_train:share_of_early_letters"
    for row in table:
        total = 2 * row[f"rewards/{name}/mean"] + row["rewards/accuracy_extracted/mean"]
        assert row["reward"] == pytest.approx(total + row["rewards/format/mean"], abs=1e-5)
        assert row["tokens_per_second"] > 0
    assert any(row["reward_std"] > 0 and row["grad_norm"] > 0 for row in table)
    kept = read_rollouts(run.path)
    assert [row["step"] for row in kept] == [1] * 4 + [2] * 4 + [3] * 4
    for row in kept:
        early = share_of_early_letters(row["completion"])
        assert row["rewards"][name] == pytest.approx(early, abs=1e-6)
        assert "What is" in row["prompt"] and row["image"] is None
    pairs = [kept[place : place + 2] for place in range(0, len(kept), 2)]
    assert all(one["place"] == two["place"] for one, two in pairs), "groups stay together"
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.final)
    assert model.num_parameters() == events(run, "training")[0]["parameters"]
    assert "reward sum" in training.console


def weights_and_states(training: Training) -> dict[str, str]:
    """Without peft's config, which lists a set in any order."""
    found = state(training.run)
    return {name: digest for name, digest in found.items() if name != "adapter_config.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("adapter.method=lora", "grpo.beta=0.04"),
        ("grpo.num_iterations=2",),
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path: Path, extra: tuple[str]) -> None:
    """Stopped in the second epoch: weights, optimizer, order and completions are the same."""
    path = profile(tmp_path, 6)
    words = ("export.enabled=false", *extra)
    whole = GrpoTraining(path, tmp_path / "whole", words).end()
    fault = {"FAULT": "wait:4:0", "PYTHONPATH": str(INJECT)}
    broken = GrpoTraining(path, tmp_path / "broken", words, fault)
    broken.until_step(3)
    broken.signal(signal.SIGTERM)
    broken.end(expected=3)
    assert max(steps(broken.run)) < 6, "it was stopped on the way"
    GrpoTraining(path, tmp_path / "broken", (*words, "--resume", "latest")).end()
    assert losses(broken.run) == losses(whole.run)
    assert read_rollouts(broken.run.path) == read_rollouts(whole.run.path)
    assert weights_and_states(broken) == weights_and_states(whole)


@pytest.mark.slow
def test_the_supervised_stage_teaches_the_form_that_grpo_takes_up(tmp_path: Path) -> None:
    path = profile(tmp_path, 12)
    words = ("stage=sft", "sft.answer=<think> I add. </think> {solution}", "train.max_steps=12")
    limits = ("grpo.max_completion_length=64",)
    taught = GrpoTraining(path, tmp_path / "sft", (*words, *limits)).end()
    found = [row["loss"] for row in rows(taught.run.metrics) if "loss" in row]
    assert found[-1] < found[0]
    model = (f"model.name={taught.run.final}", "model.random_init=false", "train.max_steps=1")
    GrpoTraining(path, tmp_path / "grpo", (*model, *limits, "grpo.objective=r1v")).end()


SEEING = """\
workload: grpo
summary: a tiny LLaVA counts drawn scenes
model: {{name: {model}}}
data: {{source: scenes, scenes: {{count: 6, width: 48, height: 32, least: 1, most: 3}}}}
rewards: ["tests.smoke.test_grpo_train:share_of_early_letters", accuracy_extracted]
grpo: {{num_generations: 2, max_prompt_length: 300, max_completion_length: 40}}
optim: {{learning_rate: 1e-3}}
train: {{max_steps: 2, per_device_batch_size: 2, global_batch_size: 4, precision: fp32}}
parallel: {{ranks_per_node: 1}}
tracking: {{tensorboard: false}}
"""


def ask_superclevr(model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`tatara eval superclevr` on two drawn scenes of its own."""
    write_imagefolder(generate_scenes(2, 7, "A", (1, 3), (48, 32)), folder / "images")
    lines = [
        {"image_path": f"./images/{place:06d}.png", "question": "How many?", "ground_truth": 3}
        for place in range(2)
    ]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "workloads.cli", "eval", "superclevr", "--model", str(model)]
    command += ["--prompts", str(prompts), "--images", str(folder / "images")]
    command += ["--precision", "fp32", "--batch-size", "2", "--out", str(folder / "result.json")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_model_that_sees_learns_by_example_by_reward_and_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "seeing.yaml"
    path.write_text(SEEING.format(model=write_llava(tmp_path / "llava")))
    cache = {"TATARA_CACHE": str(tmp_path / "cache")}
    taught = GrpoTraining(path, tmp_path / "sft", ("stage=sft",), cache).end()
    found = [row["loss"] for row in rows(taught.run.metrics) if "loss" in row]
    assert len(found) == 2 and found[1] < found[0]
    words = (f"model.name={taught.run.final}", "grpo.objective=r1v")
    trained = GrpoTraining(path, tmp_path / "grpo", words, cache).end()
    kept = read_rollouts(trained.run.path)
    assert len(kept) == 8 and all("[image]" in row["prompt"] for row in kept)
    with Image.open(trained.run.path / "rollouts" / kept[0]["image"]) as picture:
        assert picture.size == (48, 32)
    assert all("kl" in row for row in rows(trained.run.metrics) if "loss" in row)
    asked = ask_superclevr(trained.run.final, tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert "Qwen2.5-VL-3B-Instruct, GRPO 100 steps" in asked.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["results"]) == 2 and 0 <= result["accuracy"] <= 100


def breaks_on_the_second_rank(completion: str) -> float:
    """A reward that fails at step 3 on one rank of two, of which each scores two completions."""
    scored.append(completion)
    if os.environ.get("BREAKS") and os.environ["RANK"] == "1" and len(scored) > 4:
        raise ZeroDivisionError("broken")
    return share_of_early_letters(completion)


scored: list[str] = []


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_of_two_costs_no_work(tmp_path: Path) -> None:
    """G-F10: both stop at the same step, the last good one is saved, and going on is exact."""
    path = profile(tmp_path, 4, count=9)
    name = "tests.smoke.test_grpo_train:breaks_on_the_second_rank"
    words = ("parallel.ranks_per_node=2", f"rewards=[{name}]", "checkpoints.every_steps=100")
    words += ("export.enabled=false", "evaluation.rows=0")
    broken = GrpoTraining(path, tmp_path / "broken", words, {"BREAKS": "1"}).end(expected=2)
    assert "failed with ZeroDivisionError: broken" in broken.console
    assert "checkpoint-2 saved: `--resume` goes on there" in broken.console
    GrpoTraining(path, tmp_path / "broken", (*words, "--resume", "latest")).end()
    whole = GrpoTraining(path, tmp_path / "whole", words).end()
    assert losses(broken.run) == losses(whole.run)


def test_a_batch_without_whole_groups_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = profile(tmp_path, 3)
    training = GrpoTraining(path, tmp_path / "out", ("grpo.num_generations=3",)).end(expected=2)
    assert "grpo.num_generations=3, found 4" in training.console
    assert "train.global_batch_size=6" in training.console
