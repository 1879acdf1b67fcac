"""A checkpoint's weights come back, whatever names they have on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, TrainingArguments

from tests.support.tiny_llava import write_llava
from workloads.errors import TataraError
from workloads.grpo.trl_hooks import LoadsByName

pytestmark = pytest.mark.unit
WEIGHTS = "model.safetensors"


def resumer(folder: Path, out: Path) -> LoadsByName:
    """A trainer of the same model with other weights, which it has to lose."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    arguments = TrainingArguments(output_dir=str(out), use_cpu=True, report_to=[])
    return LoadsByName(model=model, args=arguments)


def test_every_weight_comes_back_under_the_names_of_older_versions(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "checkpoint-2")
    saved = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    trainer = resumer(folder, tmp_path / "out")
    assert not set(load_file(folder / WEIGHTS)) & set(saved), "names differ, or nothing is shown"
    trainer._load_from_checkpoint(str(folder))
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in saved.items())


def test_a_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "checkpoint-2")
    trainer = resumer(folder, tmp_path / "out")
    weights = load_file(folder / WEIGHTS)
    weights.pop(next(name for name in weights if "q_proj" in name))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(TataraError, match="found none for 1, the first .*q_proj"):
        trainer._load_from_checkpoint(str(folder))
