"""Reward functions of GRPO: a number from 0 to 1 for each completion.

`accuracy` and `format` are R1-V's to the letter (commit bbbbe3d), oddities included.
math-verify does not see a number that touches a tag, so that `accuracy` reads
`<think>The answer is 7.</think><answer>8</answer>` as 7. `accuracy_extracted` has no such gap: it
takes the answer out of its tags first and compares nothing else. `format_tolerant` accepts white
space and an end token around the form.
"""

import re

from workloads.grpo.rewards.answers import Verdict, compare_answers, extract_answer
from workloads.grpo.rewards.math_checker import shared_checker

_BETWEEN = re.compile(r"</think>\s*<answer>")
_TAGGED = re.compile(r"<answer>(.*?)</answer>")  # on one line only, as in R1-V
_OPENING, _CLOSING = "<think>", "</answer>"
_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_END = re.compile(r"(?:\s|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<end_of_turn>|</s>|<eos>)+$")


def accuracy(completion: str, solution: str) -> float:
    """R1-V's accuracy: 1.0 where math-verify or the tagged texts agree, else 0.0.

    math-verify reads both texts whole; where it sees no match, the first one-line
    `<answer>…</answer>` of each is compared as text, or the whole text where there is none.
    """
    return float(judge_accuracy(completion, solution).match)


def judge_accuracy(completion: str, solution: str) -> Verdict:
    """R1-V's accuracy with its reason."""
    verdict = shared_checker().compare(completion, solution)
    if verdict.match:
        return Verdict(True, f"math-verify reads {verdict.first} in the whole text")
    said, wanted = _tagged_text(completion), _tagged_text(solution)
    if said == wanted:
        return Verdict(True, "the same tagged text")
    return Verdict(False, f"math-verify reads {verdict.first}, and the tagged texts differ")


def format(completion: str) -> float:
    """R1-V's format: 1.0 where the whole text is one `<think>…</think> <answer>…</answer>`.

    Only white space may stand between the two, and nothing before or after. The same as
    `re.fullmatch(r"<think>.*?</think>\\s*<answer>.*?</answer>", text, re.DOTALL)`, in linear time.
    """
    if not (completion.startswith(_OPENING) and completion.endswith(_CLOSING)):
        return 0.0
    middle = _BETWEEN.search(completion, len(_OPENING))
    return float(middle is not None and middle.end() <= len(completion) - len(_CLOSING))


def judge_format(completion: str, solution: str) -> Verdict:
    """R1-V's format with its reason."""
    if format(completion):
        return Verdict(True, "R1's form")
    if judge_format_tolerant(completion, solution).match:
        return Verdict(False, "R1's form with more text around it; see format_tolerant")
    return Verdict(False, "not <think>…</think> <answer>…</answer>")


def format_tolerant(completion: str) -> float:
    """1.0 for one thought and one answer after it, with any white space or end token around.

    Tags may be in capitals, and the prompt may have opened the thought. Two answers earn nothing.
    """
    return float(judge_format_tolerant(completion, "").match)


def judge_format_tolerant(completion: str, solution: str) -> Verdict:
    """`format_tolerant` with its reason."""
    text = _END.sub("", completion.lstrip())
    tags = list(_TAG.finditer(text))
    names = [tag[0].lower() for tag in tags]
    if names == ["</think>", "<answer>", "</answer>"]:  # opened in the prompt
        names, inside = ["<think>", *names], True
    else:
        inside = bool(tags) and tags[0].start() == 0
    if names != ["<think>", "</think>", "<answer>", "</answer>"]:
        return Verdict(False, f"tags {' '.join(names[:8]) or 'none'}")
    between = text[tags[-3].end() : tags[-2].start()]
    if not inside or between.strip() or tags[-1].end() != len(text):
        return Verdict(False, "text outside of the thought and the answer")
    return Verdict(True, "one thought, one answer")


def accuracy_extracted(completion: str, solution: str) -> float:
    """1.0 where the completion's tagged answer equals the solution's, else 0.0.

    The answer is the first `<answer>…</answer>` outside of the reasoning; without one nothing is
    earned, whatever the reasoning says. A solution without tags counts whole.
    """
    return float(judge_extracted(completion, solution).match)


def judge_extracted(completion: str, solution: str) -> Verdict:
    """`accuracy_extracted` with its reason."""
    answer = extract_answer(completion)
    if answer is None:
        return Verdict(False, "no <answer>…</answer> outside of the reasoning")
    wanted = extract_answer(solution)
    return compare_answers(answer, solution.strip() if wanted is None else wanted)


def _tagged_text(text: str) -> str:
    tagged = _TAGGED.search(text)
    return (tagged[1] if tagged else text).strip()


def right_completion(solution: str) -> str:
    """R1's form around a solution, which may have its tags already."""
    tagged = solution if extract_answer(solution) else f"<answer> {solution.strip()} </answer>"
    return f"<think> </think> {tagged}"
