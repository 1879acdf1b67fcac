"""A reward model by name: a tiny sequence classifier made here."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from workloads.errors import UserError
from workloads.grpo.rewards.scoring import Batch, load_reward

pytestmark = pytest.mark.unit


def write_classifier(folder: Path, outputs: int) -> Path:
    shutil.copytree("data/demo/tiny-llama", folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, num_labels=outputs)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def test_a_reward_model_scores_prompt_and_completion(tmp_path: Path) -> None:
    """G-F9: each score is of its own conversation, however many are in the batch."""
    reward = load_reward(f"model:{write_classifier(tmp_path / 'model', 1)}", 0.5)
    prompts = [[{"role": "user", "content": f"What is {number} + 1?"}] for number in range(10)]
    said = [[{"role": "assistant", "content": "word " * (number + 1)}] for number in range(10)]
    found = reward.scores(Batch(said, [""] * 10, prompts))
    alone = [
        reward.scores(Batch([text], [""], [prompt]))[0]
        for text, prompt in zip(said, prompts, strict=True)
    ]
    values = [score.value for score in found]
    assert values == pytest.approx([score.value for score in alone], abs=1e-4)
    assert len(set(values)) == 10
    other = reward.scores(Batch(said[:1], [""], prompts[1:2]))
    assert other[0].value != pytest.approx(values[0], abs=1e-6), "the prompt counts"


def test_a_classifier_of_several_outputs_is_refused(tmp_path: Path) -> None:
    """G-F9."""
    reward = load_reward(f"model:{write_classifier(tmp_path / 'model', 3)}")
    with pytest.raises(UserError, match="expected a reward model with one output, found 3"):
        reward.scores(Batch(["yes"], [""]))
