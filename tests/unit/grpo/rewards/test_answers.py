"""accuracy_extracted over forms of answers, each with what a person pays; cases G-F3 to G-F6."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workloads.grpo.rewards.answers import compare_answers, extract_answer
from workloads.grpo.rewards.functions import accuracy_extracted, format, format_tolerant

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parent


def rows(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def disagreements(name: str) -> Iterator[tuple[str, str, int]]:
    """Gold, completion and what was paid, of each form that a person would pay otherwise."""
    for row in rows(name):
        completion = row.get("completion") or f"<think> </think><answer>{row['answer']}</answer>"
        paid = int(accuracy_extracted(completion, row["gold"]))
        if paid != row["pay"]:
            yield row["gold"], completion, paid


@pytest.mark.parametrize("name", ["answers.jsonl", "further_answers.jsonl"])
def test_answers_are_paid_as_a_person_pays_them(name: str) -> None:
    """G-F3, G-F4, G-F5, G-F6: the field's forms, and further ones of the same kinds."""
    assert list(disagreements(name)) == []


def test_the_forms_are_of_both_sorts() -> None:
    further = rows("further_answers.jsonl")
    assert len(further) >= 150
    assert 0.4 < sum(1 - row["pay"] for row in further) / len(further) < 0.6


@pytest.mark.parametrize(
    ("answer", "truth", "why"),
    [
        ("5 m", "5 cm", "5 m, not 5 cm"),
        ("5 m", "5 kg", "unit m, not kg"),
        ("x<3", "x>3", "x < 3 where x > 3 was wanted"),
        ("8", "7", "8, not 7"),
        ("6, 7", "7", "2 values, where 7 was wanted"),
        ("(B)", "A", "choice B, not A"),
        ("8=7", "7", "an equation that is false, 7"),
        ("x=2, y=1", "x=1, y=2", "nothing for x = 1"),
        ("合計7個です。", "7", "equal: 7"),
        ("\\int_0^1 x dx", "\\int_0^1 x dx + 0", "math-verify: equal"),
    ],
)
def test_a_verdict_says_why(answer: str, truth: str, why: str) -> None:
    assert compare_answers(answer, truth).why == why


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("9^{9^{9^{9}}}", "7"),
        ("\\sqrt{" * 300 + "2" + "}" * 300, "7"),
        ("(" * 3000 + "7" + ")" * 3000, "7"),
        ("{" * 2000, "7"),
        ("(" * 990 + "7" + ")" * 990, "7"),
        ("10^10^10!", "7"),
        ("(x+1)^{300}", "x^{300}"),
        ("1" * 1999, "7"),
        ("1+" * 990 + "1", "7"),
        ("1, " * 660 + "1", "7"),
        ("\\frac{1}{" * 200 + "2" + "}" * 200, "7"),
        ("$" * 1999, "7"),
        ("at least " * 220, "7"),
        ("1." * 999, "7"),
        ("between 1 and " * 140, "7"),
        ("0." + "3" * 1990 + "...", "7"),
        ("<" + "1," * 990, "7"),
        ("8, no " * 330, "7"),
        ("\\begin{pmatrix}" * 130, "7"),
        ("7 (or " * 330, "7"),
        ("7 is wrong, " * 160, "7"),
        ("{x | " * 390, "7"),
        ("/(m*" * 490, "7"),
        ("sin 30°" * 280, "7"),
        ("not 1, " * 280, "7"),
        ("3 in total, " * 160, "7"),
    ],
)
def test_no_answer_takes_long(answer: str, truth: str) -> None:
    """G-F14: a bound for what one completion can cost; the machine may be ten times slower."""
    begun = time.process_time()
    assert not compare_answers(answer, truth).match
    assert time.process_time() - begun < 2


def test_tags_are_read_in_linear_time() -> None:
    """G-F14: ten times the tags take about ten times as long, not a hundred times."""

    def seconds(count: int) -> float:
        begun = time.process_time()
        extract_answer("<think>" * count)
        format("<think>" + "</think><answer>" * count)
        format_tolerant("<think>" + "</think><answer>" * count)
        return time.process_time() - begun

    few, many = (min(seconds(count) for _ in range(3)) for count in (4000, 40_000))
    assert many < 50 * max(few, 0.005)


@pytest.mark.parametrize(
    ("text", "exact", "tolerant"),
    [
        ("<think>a</think><answer>7</answer>", 1, 1),
        ("<think>a</think>\n<answer>7</answer>\n", 0, 1),
        (" <think>a</think> <answer>7</answer>", 0, 1),
        ("<think>a</think><answer>7</answer><|im_end|>", 0, 1),
        ("<THINK>a</THINK><Answer>7</Answer></s>", 0, 1),
        ("a</think><answer>7</answer>", 0, 1),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 1, 0),
        ("<think>a</think><think>b</think><answer>7</answer>", 1, 0),
        ("<think>a</think> so <answer>7</answer>", 0, 0),
        ("so <think>a</think><answer>7</answer>", 0, 0),
        ("<answer>7</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_to_the_letter_and_a_tolerant_one(text: str, exact: int, tolerant: int) -> None:
    """G-F6: R1-V's format stays as it is; format_tolerant overlooks what stands around."""
    assert (format(text), format_tolerant(text)) == (exact, tolerant)
