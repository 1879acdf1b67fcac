"""Rows as they are learnt can be seen before training, for every format and on every terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from tests.support.chat_models import write_chat_model
from workloads.llm.config import LlmConfig
from workloads.llm.data.prepare import prepare
from workloads.llm.data.preview import CHART, draw, measure, show

pytestmark = pytest.mark.unit
CALL = {"function": {"name": "rain", "arguments": '{"town": "Nara"}'}}
TOOL = {"type": "function", "function": {"name": "rain", "description": "Rain today"}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "rain?"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "dry"},
            {"role": "assistant", "content": "It is dry."},
        ],
        "tools": [TOOL],
    },
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    {"instruction": "Say it.", "input": "いぬ", "output": "dog"},
    {"question": "1 + 1?", "answer": "2"},
    {"question": "1 + 1?", "answer": "2"},
]


@pytest.mark.parametrize("packing", [False, True])
def test_every_format_is_shown_with_what_is_learnt(tmp_path: Path, packing: bool) -> None:
    """L-F2, L-F3, L-F5: seen at once."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = write_chat_model(tmp_path / "model", "tools")
    values: dict[str, Any] = {"workload": "llm", "name": "t", "model": {"name": str(folder)}}
    values["data"] = {"source": str(source), "packing": packing, "max_length": 512}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = prepare(LlmConfig.model_validate(values), tokenizer, tmp_path / "cache")
    written = io.StringIO()
    show(data, tokenizer, 1, Console(file=written, width=200))
    text = written.getvalue()
    assert '[[<tool_call>\n{"name": "rain", "arguments": {"town": "Nara"}}' in text
    assert "Rain today" in text and "[[It is dry.<|im_end|>]]" in text
    for title in ("row 1, the longest", "the shortest", "learn, sharegpt", "the first alpaca"):
        assert title in text
    assert f"{source}:1 · " in text and "Say it.\nいぬ" in text and "[[dog<|im_end|>]]" in text
    assert "repeated" in text and data.report.train.repeated == 1
    lengths, learnt = measure(data)
    assert lengths.sum() == data.report.train.tokens
    assert learnt.sum() == data.report.train.learnt_tokens
    draw(lengths, learnt, tmp_path / "charts" / CHART)
    assert (tmp_path / "charts" / CHART).read_bytes().startswith(b"\x89PNG")


def test_colour_takes_the_place_of_marks_on_a_terminal(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(ROWS[3]) + "\n")
    folder = write_chat_model(tmp_path / "model", "chatml")
    values = {"workload": "llm", "name": "t", "model": {"name": str(folder)}}
    config = LlmConfig.model_validate({**values, "data": {"source": str(source)}})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = prepare(config, tokenizer, tmp_path / "cache")
    written = io.StringIO()
    show(data, tokenizer, 1, Console(file=written, width=200, force_terminal=True))
    text = written.getvalue()
    assert "[[" not in text and "\x1b[1;32m2<|im_end|>" in text
