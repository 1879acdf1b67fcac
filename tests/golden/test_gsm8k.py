"""GSM8K scores, exact against what lm-evaluation-harness and verl gave for the same outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from workloads.llm.evaluate import gsm8k

pytestmark = pytest.mark.golden

SCORING = Path(__file__).parent / "gsm8k" / "scoring.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in SCORING.read_text("utf-8").splitlines()]
# The train rows that lm-evaluation-harness 0.4.13 shows before the first three test questions.
FIRST_DRAWS = [
    [6374, 3610, 957, 61, 742],
    [7462, 6610, 4769, 286, 5501],
    [5677, 687, 806, 6279, 2905],
]
WAYS = {"strict": "strict_match", "flexible": "flexible_extract"}


def test_the_recorded_set_is_whole():
    assert len(ROWS) == 148
    assert len({row["category"] for row in ROWS}) == 11


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}-{row['category']}")
def test_scores_and_extractions(row: dict[str, Any]):
    output, answer = row["model_output"], row["gold_answer_text"]
    plain, llama, verl = row["lm_eval_gsm8k"], row["lm_eval_gsm8k_cot_llama"], row["verl"]

    assert gsm8k.extract_gsm8k(output) == {
        way: plain[name]["extracted"] for way, name in WAYS.items()
    }
    assert gsm8k.score_gsm8k(output, answer) == {
        way: plain[name]["exact_match"] == 1.0 for way, name in WAYS.items()
    }
    assert answer == plain["target"]

    assert gsm8k.extract_gsm8k_cot_llama(output) == {
        way: llama[name]["extracted"] for way, name in WAYS.items()
    }
    assert gsm8k.score_gsm8k_cot_llama(output, answer) == {
        way: llama[name]["exact_match"] == 1.0 for way, name in WAYS.items()
    }
    assert gsm8k.cot_llama_target(answer) == llama["target"]

    assert gsm8k.extract_verl(output) == {way: verl[way]["extracted"] for way in WAYS}
    assert gsm8k.score_verl(output, answer) == {way: verl[way]["score"] for way in WAYS}
    assert gsm8k.verl_gold(answer) == row["gold_extracted"]


def test_scores_are_true_or_false():
    scores = gsm8k.score_gsm8k("So 7.\n#### 7", "It is 7.\n#### 7")
    assert scores["strict"] is True and scores["flexible"] is True


def test_the_few_shot_prompt_is_the_harness_s():
    examples = [
        {"question": "How many?", "answer": "1+1=2\n#### 2"},
        {"question": "And now?", "answer": "#### 3"},
    ]
    assert gsm8k.few_shot_prompt(examples, "So?") == (
        "Question: How many?\nAnswer: 1+1=2\n#### 2\n\n"
        "Question: And now?\nAnswer: #### 3\n\n"
        "Question: So?\nAnswer:"
    )
    assert gsm8k.few_shot_prompt([], "So?") == "Question: So?\nAnswer:"


def test_few_shot_examples_do_not_depend_on_how_many_questions_follow():
    drawn = gsm8k.few_shot_examples(train_rows=7473, questions=3)
    assert drawn == gsm8k.few_shot_examples(train_rows=7473, questions=1319)[:3]
    assert drawn == FIRST_DRAWS


def test_the_chat_prompt_is_verl_s():
    (turn,) = gsm8k.chat_prompt("How many?")
    assert turn["role"] == "user"
    assert turn["content"] == (
        'How many? Let\'s think step by step and output the final answer after "####".'
    )


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ("#### 7\n\nQuestion: next", "#### 7\n\n"),
        ("#### 7<|im_end|>Question: a</s>", "#### 7"),
        ("</s>", ""),
        ("#### 7", "#### 7"),
    ],
)
def test_an_output_ends_at_its_first_stop_string(output: str, kept: str):
    assert gsm8k.cut_at_stop_string(output) == kept
