"""A tiny language model learns to call a calculator, in this process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

from tests.smoke.test_grpo_objectives import one_rank as one_rank
from tests.support.inline import train_inline
from tests.support.tiny_llava import write_llava
from workloads.grpo.rollouts.rollouts import read_rollouts
from workloads.grpo.tools import calculate

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Calls in the form that many models use; tools are named in front.
TEMPLATE = """\
{{- bos_token }}
{%- for tool in tools or [] %}{{- tool.function.name ~ ' ' }}{%- endfor %}
{%- for message in messages %}
{{- '<|' ~ ('user' if message['role'] == 'tool' else message['role']) ~ '|>' }}
{{- message['content'] or '' }}
{%- for call in message.get('tool_calls') or [] %}
{{- '<tool_call>' ~ (call.function | tojson) ~ '</tool_call>' }}
{%- endfor %}
{{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
READ_BACK = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}
# One token each, so that a call is short.
PIECES = (
    "<tool_call>",
    '{"name": "calculate", "arguments": {"expression": "',
    '"}}',
    "</tool_call>",
)
SUMS = ("3 * 4", "9 - 2", "5 + 3", "8 / 2")
PROFILE = """\
workload: grpo
summary: a tiny Llama is rewarded for sums that only a calculator brings
model: {{name: {model}}}
data: {{source: {rows}, prompt_template: "{{question}}"}}
rewards: ["tests.smoke.test_grpo_tools:is_right"]
grpo: {{num_generations: 8, max_prompt_length: 64, max_completion_length: 32}}
optim: {{learning_rate: 1e-3}}
evaluation: {{rows: 0}}
train: {{max_steps: {steps}, per_device_batch_size: 32, precision: fp32}}
parallel: {{ranks_per_node: 1}}
tracking: {{tensorboard: false}}
"""


def is_right(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Whether the model's last turn is the solution; what the tool answered does not count."""
    return [
        float(
            turns[-1]["role"] == "assistant" and wanted in (turns[-1].get("content") or "").split()
        )
        for turns, wanted in zip(completions, solution, strict=True)
    ]


class Desk:
    """An environment with a calculator that counts its uses, and a reward for the first of them."""

    def reset(self, **row: Any) -> None:
        self.uses = 0

    def calculate(self, expression: str) -> str:
        """Work out an expression.

        Args:
            expression: What to work out.
        """
        self.uses += 1
        return calculate(expression)

    def get_reward(self) -> float:
        return float(self.uses == 1)


def write_caller(folder: Path, steps: int = 90, **sizes: int) -> Path:
    """The demo's tiny model, taught to call the calculator every other time, else to say no.

    sizes: of its config, where they are to be others.
    """
    shutil.copytree("data/demo/tiny-llama", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = READ_BACK
    tokenizer.add_tokens(list(PIECES))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **sizes))
    batch = tokenizer(
        [text for sum_ in SUMS for text in taught(tokenizer, sum_)],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    model.resize_token_embeddings(len(tokenizer))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def taught(tokenizer: Any, sum_: str, seen: bool = False) -> list[str]:
    """Conversations about a sum, with a call and without; `seen`: beside an image."""
    call = {
        "type": "function",
        "function": {"name": "calculate", "arguments": {"expression": sum_}},
    }
    parts = [{"type": "image"}, {"type": "text", "text": sum_}]
    asked, value = {"role": "user", "content": parts if seen else sum_}, calculate(sum_)
    no = [asked, {"role": "assistant", "content": "no"}]
    yes = [
        asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculate", "content": value},
        {"role": "assistant", "content": value},
    ]
    return [
        tokenizer.apply_chat_template(turns, tools=[calculate], tokenize=False)
        for turns in (no, yes)
    ]


def profile(folder: Path, model: Path, steps: int) -> Path:
    data = folder / "sums.jsonl"
    rows = [{"problem": sum_, "solution": calculate(sum_)} for sum_ in SUMS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "tools.yaml"
    path.write_text(PROFILE.format(model=model, rows=data, steps=steps))
    return path


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def test_a_tiny_model_learns_to_call_a_calculator(tmp_path: Path) -> None:
    path = profile(tmp_path, write_caller(tmp_path / "model"), 16)
    trained = train_inline(path, tmp_path / "run", 'tools=["workloads.grpo.tools:calculate"]')
    assert trained.error is None, trained.error
    early, late = trained.rows[:3], trained.rows[-3:]
    assert mean(early, "tools/call_frequency") < 0.7 < 0.8 < mean(late, "tools/call_frequency")
    assert mean(late, "reward") > mean(early, "reward") + 0.15
    last = read_rollouts(trained.run.path)[-1]["completion"]
    assert "assistant: calls calculate(" in last and "\ntool: " in last


def test_an_environment_brings_tools_and_a_reward(tmp_path: Path) -> None:
    path = profile(tmp_path, write_caller(tmp_path / "model"), 2)
    word = "tools.environment=tests.smoke.test_grpo_tools:Desk"
    trained = train_inline(path, tmp_path / "run", word, "rollouts.per_step=16")
    assert trained.error is None, trained.error
    kept = read_rollouts(trained.run.path)
    for row in kept:
        assert row["rewards"]["Desk"] == float(row["completion"].count("calls calculate(") == 1)
        assert row["reward"] == sum(row["rewards"].values())
    assert {row["rewards"]["Desk"] for row in kept} == {0.0, 1.0}
    alone = train_inline(path, tmp_path / "alone", word, "rewards=[]", "train.max_steps=1")
    assert alone.error is None, alone.error
    (row,) = alone.rows
    assert row["reward"] == row["rewards/Desk/mean"] and "reward Desk" in alone.console


SEEN = """\
{{- bos_token }}
{%- for tool in tools or [] %}{{- tool.function.name ~ ' ' }}{%- endfor %}
{%- for message in messages %}
{{- '<|' ~ ('user' if message['role'] == 'tool' else message['role']) ~ '|>' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}
{%- for part in message['content'] or [] %}
{{- '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor %}
{%- endif %}
{%- for call in message.get('tool_calls') or [] %}
{{- '<tool_call>' ~ (call.function | tojson) ~ '</tool_call>' }}
{%- endfor %}
{{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""


def write_seeing_caller(folder: Path) -> Path:
    """A tiny LLaVA that calls the calculator every other time, whatever it sees."""
    write_llava(folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = SEEN
    processor.tokenizer.response_template = READ_BACK
    processor.tokenizer.add_tokens(list(PIECES))
    processor.save_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(len(processor.tokenizer))
    texts = [text for sum_ in SUMS for text in taught(processor, sum_, seen=True)]
    images = [[Image.new("RGB", (60, 40), (200, 30, 30))]] * len(texts)
    batch = processor(text=texts, images=images, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_tools_beside_images(tmp_path: Path) -> None:
    """A vision-language model calls a tool; a row of text is in the same batch."""
    path = profile(tmp_path, write_seeing_caller(tmp_path / "model"), 2)
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    rows = [
        {"image": "red.png" if place < 3 else None, "problem": sum_, "solution": calculate(sum_)}
        for place, sum_ in enumerate(SUMS)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ('tools=["workloads.grpo.tools:calculate"]', "rollouts.per_step=32")
    trained = train_inline(path, tmp_path / "run", *words)
    assert trained.error is None, trained.error
    assert all(row["tools/call_frequency"] > 0 for row in trained.rows)
    kept = read_rollouts(trained.run.path)
    assert {row["image"] is None for row in kept} == {True, False}
    assert any("\ntool: " in row["completion"] for row in kept if row["image"])
