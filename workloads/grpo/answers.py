"""Answers taken out of their tags, and whether two of them mean the same.

Plain answers ("7", "There are 7 items", "140°", "3, 4") are compared by all the numbers in them,
so that naming several numbers earns nothing where one was asked for. Answers with roots, fractions
or other LaTeX are compared by math-verify as one expression, never by a number inside it.
"""

import re
from fractions import Fraction

from workloads.grpo.math_checker import shared_checker

# The innermost pair of tags, over several lines if need be.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<minus>-?)(?P<top>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:\s*/\s*(?P<bottom>\d+))?(?P<percent>\s*%)?"
)
_ARITHMETIC = re.compile(r"[\d\s.+\-*/^()]*\d[\d\s.+\-*/^()]*")
_OPERATOR = re.compile(r"\d\s*\)*\s*[+\-*/^]|[+\-*/^]\s*\(|\(\s*\d")
_LENGTH_UNIT = re.compile(r"(?<=[\d})\s])(?:[cdkm]?m)(?:\^?\{?[23]\}?|[²³])?$")
_RATIO = re.compile(r"(?<=[\d})])\s*:\s*(?=[\d\\(])")
_MATH_SIGN = re.compile(r"[\\√π^_{}$]")
_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
_ROOT = re.compile(r"√\s*(?:\{(?P<braced>[^{}]*)\}|\((?P<round>[^()]*)\)|(?P<bare>\d+|\w))")
_LONGEST_NUMBER = 1000  # characters; Python itself refuses to read more than 4300 digits
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "：": ":", "，": ","})


def extract_answer(text: str) -> str | None:
    """The first `<answer>…</answer>` outside of the reasoning, stripped; None without one.

    An empty pair of tags holds no answer either. Reasoning is `<think>…</think>`, and whatever
    stands before a `</think>` that was opened in the prompt.
    """
    spoken = _THOUGHT.sub("", text).rpartition("</think>")[2]
    tagged = _ANSWER.search(spoken)
    return (tagged[1].strip() or None) if tagged else None


def answers_match(answer: str, truth: str) -> bool:
    """Whether `answer` means the same as `truth`; two empty ones do not."""
    answer, truth = _tidy(answer), _tidy(truth)
    if not answer or not truth:
        return False
    if answer.casefold() == truth.casefold():
        return True
    if _is_expression(answer) or _is_expression(truth):
        return shared_checker().compare(_for_math(truth), _for_math(answer)).match
    numbers = _numbers(answer)
    return bool(numbers) and numbers == _numbers(truth)


def _tidy(text: str) -> str:
    text = " ".join(text.translate(_SIGNS).split()).strip("*").rstrip(". ")
    return _RATIO.sub("/", _LENGTH_UNIT.sub("", text).rstrip())


def _is_expression(text: str) -> bool:
    """Whether a number inside `text` would not be the whole of it: roots, powers, sums."""
    if _MATH_SIGN.search(text):
        return True
    return bool(_ARITHMETIC.fullmatch(text) and _OPERATOR.search(text))


def _for_math(text: str) -> str:
    """`text` so that math-verify reads all of it as one expression, or its one plain number."""
    if _DELIMITER.search(text):
        return text
    if not _is_expression(text):
        return f" {text} "
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m['braced'] or m['round'] or m['bare']}}}", text)
    return "$" + text.replace("π", r" \pi ").replace("°", r"^\circ") + "$"


def _numbers(text: str) -> frozenset[Fraction]:
    """The numbers in plain text; of an equation only what stands after the last `=`."""
    found = _NUMBER.finditer(text.rpartition("=")[2])
    return frozenset(value for match in found if (value := _value(match)) is not None)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    bottom = int(match["bottom"] or 1) * (100 if match["percent"] else 1)
    if bottom == 0:
        return None
    value = Fraction(match["top"].replace(",", "")) / bottom
    return -value if match["minus"] else value
