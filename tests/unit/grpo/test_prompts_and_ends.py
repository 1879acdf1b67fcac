"""What GRPO asks and where a completion ends: by the chat template, the same on every day."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from transformers import AutoTokenizer

from tests.support.chat_models import write_chat_model
from tests.support.inline import train_inline
from workloads.config.merge import resolve
from workloads.engine.pretrained.chat import FIXED_DATE, fixed
from workloads.errors import TataraError
from workloads.grpo.data.tokens import read_prompt_text
from workloads.grpo.model import prompt_texts
from workloads.grpo.rollouts import engine
from workloads.grpo.train import GrpoTrainer

pytestmark = pytest.mark.unit
TURNS = [{"role": "user", "content": "1 + 1?"}]
PROFILE = """\
workload: grpo
summary: a tiny model of a family
model: {{name: {model}, random_init: true}}
data: {{source: {rows}}}
rewards: [accuracy_extracted]
grpo: {{num_generations: 2, max_prompt_length: 1024, max_completion_length: 4}}
evaluation: {{rows: 0}}
train: {{max_steps: 1, per_device_batch_size: 2, precision: fp32}}
tracking: {{tensorboard: false}}
"""


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun's agent starts a single rank."""
    facts = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**facts, "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class Built(TataraError):
    """Ends a run where its training would begin."""


def trainer_of(folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The trainer that a run of a model of that family builds."""
    found: list[Any] = []

    def fit(self: GrpoTrainer, resume: Path | None) -> None:
        found.append(self)
        raise Built("built")

    monkeypatch.setattr(GrpoTrainer, "fit", fit)
    model = write_chat_model(folder / "model", family)
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "1 + 1?", "solution": "<answer> 2 </answer>"}) + "\n")
    profile = folder / "family.yaml"
    profile.write_text(PROFILE.format(model=model, rows=rows))
    done = train_inline(profile, folder / "run", *words)
    assert isinstance(done.error, Built), done.error
    return found[0]


def test_completions_end_where_the_template_ends_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-F1 for GRPO: the model's end token is another than its template's."""
    trainer = trainer_of(tmp_path, "base-chatml", monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert len(ends) == 2
    assert set(trainer.eos_token_ids) == ends  # what TRL masks and counts by
    assert set(trainer.generation_config.eos_token_id) == ends


@pytest.mark.parametrize("name", ["vllm_colocate", "vllm_server"])
def test_vllm_is_told_the_same_ends(name: str) -> None:
    """L-F1 for GRPO by vLLM, which knows the model's own end alone."""
    own = "grpo.sampling.generation_kwargs={stop_token_ids: [7]}"
    words = [f"generation.engine={name}", own]
    config, _ = resolve("profiles/grpo-h100.yaml", {}, words)
    assert engine.arguments(config, [], [0, 2])["generation_kwargs"] == {
        "stop_token_ids": [0, 2, 7]
    }


def test_prompts_are_the_same_on_every_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-F13 for GRPO: rollouts, held-out questions, and the count of tokens before them."""
    trainer = trainer_of(tmp_path, "dated", monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    (ids,), _, _ = trainer._tokenize_prompts([TURNS])
    (text,) = prompt_texts(tokenizer, [TURNS])
    assert FIXED_DATE in text and tokenizer.decode(ids) == text
    assert read_prompt_text(tmp_path / "model", sees_images=False).count(TURNS) == (len(ids), 0)


LOUD = (
    "{% for m in messages %}{{ '<|user|>' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if loud is defined and loud %}{{ 'LOUD' }}{% endif %}{{ '<|assistant|>' }}"
)


@pytest.mark.parametrize("setting", ["grpo.sampling", "model"])
def test_template_and_switches_are_the_same_everywhere(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts, held-out questions, the count of tokens, and what is exported (G-F11)."""
    (tmp_path / "own.jinja").write_text(LOUD)
    words = [
        f"model.chat_template={tmp_path}/own.jinja",
        f"{setting}.chat_template_kwargs.loud=true",
    ]
    trainer = trainer_of(tmp_path, "dated", monkeypatch, *words)
    (ids,), _, _ = trainer._tokenize_prompts([TURNS])
    wanted = "<|user|>1 + 1?<|eot|>LOUD<|assistant|>"
    assert trainer.processing_class.decode(ids) == wanted
    assert prompt_texts(trainer.processing_class, [TURNS]) == [wanted]
    model = trainer.profile.model
    counted = read_prompt_text(tmp_path / "model", sees_images=False, model=model).count(TURNS)
    assert counted == (len(ids), 0)
    kept = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert prompt_texts(kept, [TURNS]) == [wanted]


def test_a_switch_that_the_template_does_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="found 'shout', which stands nowhere in it"):
        switch = "grpo.sampling.chat_template_kwargs.shout=true"
        trainer_of(tmp_path, "dated", monkeypatch, switch)


def test_a_template_is_given_what_it_reads_alone(tmp_path: Path) -> None:
    """A processor takes what its template does not read for a setting of its own."""
    dated, plain = (
        AutoTokenizer.from_pretrained(write_chat_model(tmp_path / name, name))
        for name in ("dated", "chatml")
    )
    assert set(fixed(dated)) == {"strftime_now"} and not fixed(plain)
