"""GRPO with the real vLLM in the trainer's process, on the CPU, by the command a user types."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.smoke.test_grpo_tools import SUMS, write_caller
from tests.smoke.test_grpo_train import GrpoTraining
from tests.support.processes import rows
from tests.support.tiny_llama import write_tiny
from tests.vllm.engine import environment
from tests.vllm.tiny_qwen import write_qwen
from workloads.grpo.rollouts.rollouts import read_rollouts
from workloads.grpo.tools import calculate

pytestmark = pytest.mark.vllm

REWARD = "tests.smoke.test_grpo_train:share_of_early_letters"
PROFILE = """\
workload: grpo
summary: a tiny model is rewarded for letters up to m, vLLM writes
model: {{name: {model}}}
data: {data}
rewards: ["{reward}"]
grpo: {{num_generations: 4, max_prompt_length: 480, max_completion_length: 12}}
generation: {{engine: vllm_colocate, sleep_level: 0}}
optim: {{learning_rate: {rate}, schedule: constant}}
train: {{max_steps: 8, per_device_batch_size: 16, precision: fp32}}
parallel: {{ranks_per_node: 1, restarts: 0}}
evaluation: {{rows: 0}}
tracking: {{tensorboard: false}}
"""
SCENES = "{source: scenes, scenes: {count: 16, least: 1, most: 4, width: 72, height: 36}}"


def trained(
    folder: Path, model: Path, data: str, rate: float, words: Sequence[str] = ()
) -> GrpoTraining:
    path = folder / "profile.yaml"
    path.write_text(PROFILE.format(model=model, data=data, reward=REWARD, rate=rate))
    more = environment(folder / "out") | {"TATARA_CACHE": str(folder / "cache")}
    return GrpoTraining(path, folder / "out", words, more).end()


def follows(training: GrpoTraining) -> None:
    """The engine wrote with the trainer's weights at every step, and they changed what it wrote.

    The learning rate is high: an engine that had kept the first weights would by the last step
    give its completions quite other probabilities than the trainer does. What is left comes from
    the engine's bfloat16.
    """
    table = [row for row in rows(training.run.metrics) if "loss" in row]
    assert len(table) == 8
    for row in table:
        assert row["sampling/sampling_logp_difference/mean"] < 0.05, row
        assert 0.8 < row["sampling/importance_sampling_ratio/mean"] < 1.25, row
    earned = [row["reward"] for row in table]
    assert sum(earned[-2:]) / 2 > sum(earned[:2]) / 2 + 0.05, earned
    kept = read_rollouts(training.run.path)
    assert {row["step"] for row in kept} == set(range(1, 9)) and any(row["reward"] for row in kept)


def test_completions_of_text_follow_the_weights(tmp_path: Path) -> None:
    lines = [f'{{"problem": "What is {n} + {n}?", "solution": "{2 * n}"}}\n' for n in range(16)]
    (tmp_path / "sums.jsonl").write_text("".join(lines))
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = write_tiny(tmp_path / "llama", initializer_range=0.1, **sizes)
    follows(trained(tmp_path, model, f"{{source: {tmp_path}/sums.jsonl}}", 1e-2))


def test_completions_about_pictures_follow_the_weights(tmp_path: Path) -> None:
    training = trained(tmp_path, write_qwen(tmp_path / "qwen"), SCENES, 1e-2)
    follows(training)
    assert all("[image]" in row["prompt"] for row in read_rollouts(training.run.path))


def test_two_images_in_a_prompt_and_a_row_of_text(tmp_path: Path) -> None:
    """Prompts with two images, one and none in one batch: the engine answers what is trained on.

    The images come again with new weights, and are encoded anew.
    """
    for number in range(3):
        image = Image.new("RGB", (72, 36), (80 * number, 90, 200))
        image.putpixel((1, 1), (0, 0, 0))
        image.save(tmp_path / f"{number}.png")
    lines = [
        {"images": ["0.png", "1.png"], "problem": "Is <image> in <image>?", "solution": "3"},
        {"problem": "2 + 5 = ?", "solution": "7"},
        {"images": ["2.png"], "problem": "How many?", "solution": "3"},
        {"images": ["1.png", "2.png"], "problem": "The same?", "solution": "no"},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("train.max_steps=3", "rollouts.per_step=16")
    training = trained(tmp_path, write_qwen(tmp_path / "qwen"), f"{{source: {data}}}", 1e-3, words)
    agrees(training, 3)
    kept = read_rollouts(training.run.path)
    assert {len(row.get("images", [])) for row in kept} == {0, 2}
    assert any(row["image"] and "images" not in row for row in kept)


def agrees(training: GrpoTraining, steps: int) -> None:
    """The engine gives its completions the probabilities that the trainer gives them."""
    table = [row for row in rows(training.run.metrics) if "loss" in row]
    assert len(table) == steps
    for row in table:
        assert row["sampling/sampling_logp_difference/mean"] < 0.05, row


def test_the_engine_sees_pictures_as_small_as_the_profile_wants(tmp_path: Path) -> None:
    """3 tokens of a picture for both; by the model's own bounds they would be 8."""
    large = SCENES.replace("width: 72, height: 36", "width: 112, height: 56")
    words = ("grpo.max_pixels=5000", "train.max_steps=2")
    agrees(trained(tmp_path, write_qwen(tmp_path / "qwen"), large, 1e-3, words), 2)


def test_tools_with_the_engine(tmp_path: Path) -> None:
    """The engine goes on behind a tool's answer, with the tokens that the trainer learns from."""
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    model = write_caller(tmp_path / "llama", **sizes)
    data = tmp_path / "sums.jsonl"
    lines = [{"problem": sum_, "solution": calculate(sum_)} for sum_ in SUMS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    template = 'prompt_template: "{question}"'
    words = (
        'tools=["workloads.grpo.tools:calculate"]',
        "grpo.max_completion_length=32",
        "rewards=[tests.smoke.test_grpo_tools:is_right]",
        "train.max_steps=3",
    )
    training = trained(tmp_path, model, f"{{source: {data}, {template}}}", 1e-4, words)
    agrees(training, 3)
    table = [row for row in rows(training.run.metrics) if "loss" in row]
    assert all(row["tools/call_frequency"] > 0 for row in table)
    assert any("\ntool: " in row["completion"] for row in read_rollouts(training.run.path))
