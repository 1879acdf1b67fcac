"""GSM8K on a tiny Llama that has learnt a few answers by heart."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny_llama import make_model, make_tokenizer
from workloads.errors import Stopped, UserError
from workloads.llm.config import LlmData, LlmEvaluation
from workloads.llm.evaluate.score import (
    Score,
    _Answers,
    evaluate_gsm8k,
    merge_shards,
    read_answers,
    table,
)

pytestmark = pytest.mark.unit
KNOWN = [
    {"question": "Six and one?", "answer": "6+1\n#### 7"},
    {"question": "Two times ten?", "answer": "2x10\n#### 20"},
    {"question": "Half of 8?", "answer": "8/2\n#### 4"},
]
WRONG = [
    {"question": "Six and one?", "answer": "6+1\n#### 8"},  # the model will say 7
    {"question": "Six and one?", "answer": "The answer is 7"},  # right number, without the form
]
ROWS = KNOWN + WRONG
DATA = LlmData(source="rows.jsonl")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Overfitted on the known rows, asked as the chat template asks."""
    tokenizer = make_tokenizer()
    model = make_model(seed=1, initializer_range=0.1)
    texts = [
        f"<|begin|><|user|>{row['question']}<|end|><|assistant|>{row['answer']}<|end|>"
        for row in KNOWN
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(80):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def settings(**changes: Any) -> LlmEvaluation:
    return LlmEvaluation.model_validate({"max_new_tokens": 24, "batch_size": 2, **changes})


def ask(model: LlamaForCausalLM, out: Path, rows: Any = ROWS, **more: Any) -> Score:
    wishes = more.pop("settings", settings())
    return evaluate_gsm8k(model, make_tokenizer(), rows, wishes, out, data=DATA, **more)


def answers(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("gsm8k-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


class Counting:
    """How many rows the model was given, to see what a second call still asks."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.rows = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:  # a prompt, not one more token
            self.rows += kwargs["input_ids"].shape[0]

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *problem: object) -> None:
        self._handle.remove()


def test_scores_rows_and_summary(model: LlamaForCausalLM, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    score = ask(model, tmp_path, progress=lambda done, total: seen.append((done, total)))
    # The last gold text has no `####`: the harness compares with all of it, and nothing matches.
    assert (score.rows, score.strict, score.flexible, score.marked) == (5, 0.6, 0.6, 1.0)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    found = answers(tmp_path)
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
    assert found[1]["output"] == KNOWN[1]["answer"] and found[1]["strict"] is True
    assert found[3] == {
        "index": 3,
        "question": "Six and one?",
        "output": "6+1\n#### 7",
        "answer": "6+1\n#### 8",
        "strict": False,
        "flexible": False,
        "marked": True,
    }
    summary = json.loads((tmp_path / "gsm8k.json").read_text())
    assert summary["strict"] == 0.6 and summary["settings"]["style"] == "chat"
    assert (tmp_path / summary["answers"]).is_file()
    assert score.error == pytest.approx((0.6 * 0.4 / 4) ** 0.5)


def test_answers_may_hold_any_character(tmp_path: Path) -> None:
    """Some of them end a line in Python's eyes, not in JSON's."""
    output = "".join(map(chr, [*range(1, 0xA0), 0x2028, 0x2029])) + "#### 7"
    with _Answers(tmp_path, "f", (0, 1)) as kept:
        kept.add([{"index": 0, "output": output}, {"index": 1, "output": ""}])
    found = read_answers(tmp_path, "f")
    assert [item["output"] for item in found.values()] == [output, ""]


def test_a_stopped_evaluation_goes_on(model: LlamaForCausalLM, tmp_path: Path) -> None:
    stops = iter([False, True])
    with pytest.raises(Stopped, match="after 2 of 5"):
        ask(model, tmp_path, should_stop=lambda: next(stops))
    with Counting(model) as counting:
        score = ask(model, tmp_path)
    assert counting.rows == 3
    assert score == Score(**{**ask(model, tmp_path / "whole").__dict__, "seconds": score.seconds})
    with Counting(model) as counting:
        assert ask(model, tmp_path).strict == 0.6
    assert counting.rows == 0


def test_a_line_cut_short_is_asked_again(model: LlamaForCausalLM, tmp_path: Path) -> None:
    stops = iter([False, True])
    with pytest.raises(Stopped):
        ask(model, tmp_path, should_stop=lambda: next(stops))
    (part,) = tmp_path.glob("*.part-0-of-1.jsonl")
    part.write_bytes(part.read_bytes()[:-9])
    with Counting(model) as counting:
        score = ask(model, tmp_path)
    assert counting.rows == 4 and score.strict == 0.6 and len(answers(tmp_path)) == 5


def test_ranks_share_the_rows(model: LlamaForCausalLM, tmp_path: Path) -> None:
    first = ask(model, tmp_path, shard=(0, 2))
    second = ask(model, tmp_path, shard=(1, 2))
    assert (first.rows, second.rows) == (3, 2)
    assert first.fingerprint == second.fingerprint
    score = merge_shards(tmp_path, first.fingerprint, settings(), 1.0)
    assert (score.rows, score.strict) == (5, 0.6)
    assert [row["index"] for row in answers(tmp_path)] == [0, 1, 2, 3, 4]
    assert not list(tmp_path.glob("*.part-*"))


def test_going_on_with_another_number_of_ranks(model: LlamaForCausalLM, tmp_path: Path) -> None:
    ask(model, tmp_path, shard=(1, 2))
    with Counting(model) as counting:
        assert ask(model, tmp_path).strict == 0.6
    assert counting.rows == 3


def test_other_settings_or_weights_start_a_file_of_their_own(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    told: list[str] = []
    first = ask(model, tmp_path, report=told.append)
    assert told == []
    ask(model, tmp_path, settings=settings(batch_size=5), report=told.append)
    assert told == []  # how many at a time decides nothing
    with Counting(model) as counting:
        shorter = ask(model, tmp_path, settings=settings(max_new_tokens=2), report=told.append)
    assert counting.rows == 5 and shorter.strict == 0 and "differ from" in told[0]
    with torch.no_grad():
        model.lm_head.weight += 1e-3
    changed = ask(model, tmp_path)
    with torch.no_grad():
        model.lm_head.weight -= 1e-3
    assert len({first.fingerprint, shorter.fingerprint, changed.fingerprint}) == 3
    assert len(list(tmp_path.glob("gsm8k-*.jsonl"))) == 3


def test_few_shot_prompts_are_the_harness_s(model: LlamaForCausalLM, tmp_path: Path) -> None:
    seen: list[str] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            seen.append(make_tokenizer().decode(kwargs["input_ids"][0], skip_special_tokens=True))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    wishes = settings(style="few_shot", shots=2, batch_size=1, rows=1)
    score = ask(model, tmp_path, settings=wishes, examples=KNOWN)
    handle.remove()
    assert score.rows == 1 and len(seen) == 1
    assert seen[0].endswith("\n\nQuestion: Six and one?\nAnswer:")
    assert seen[0].count("Question: ") == 3 and seen[0].count("\n#### ") == 2
    with pytest.raises(UserError, match=r"evaluation\.shots: expected at most 3"):
        ask(model, tmp_path, settings=settings(style="few_shot", shots=4), examples=KNOWN)


def test_questions_are_put_as_in_training(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with_suffix = LlmData(source="rows.jsonl", prompt_suffix=" Please.", system_prompt="Be brief.")
    seen: list[str] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(make_tokenizer().decode(kwargs["input_ids"][0])),
        with_kwargs=True,
    )
    wishes = settings(rows=1, max_new_tokens=1)
    evaluate_gsm8k(model, make_tokenizer(), ROWS, wishes, tmp_path, data=with_suffix)
    handle.remove()
    assert seen[0].endswith(
        "<|begin|><|system|>Be brief.<|end|><|user|>Six and one? Please.<|end|><|assistant|>"
    )


def test_rows_that_cannot_be_asked(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without answer.*data.format=qa"):
        ask(model, tmp_path, rows=[{"question": "Why?"}])
    with pytest.raises(UserError, match="held-out row 1 cannot be asked"):
        ask(model, tmp_path, rows=[ROWS[0], {"question": "Why?", "answer": " "}])


def test_a_table_to_read() -> None:
    from rich.console import Console

    score = Score("gsm8k", 100, 0.25, 0.5, 0.75, "ab")
    console = Console(record=True, width=100)
    console.print(table({"before": score, "after": score}))
    text = console.export_text()
    assert "before" in text and "25.0%" in text and "5.0%" in text and "75.0%" in text


def test_scoring_alone_loads_no_torch() -> None:
    code = (
        "import sys; from workloads.llm.evaluate import score_gsm8k; "
        "print(score_gsm8k('#### 7', '1+6 #### 7'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'strict': True, 'flexible': True} False"
