"""Answers taken out of their tags, and whether two of them mean the same.

Plain answers ("7", "There are 7 items", "140°", "3, 4") are compared by all the numbers in them,
in any order unless they stand in brackets, so that naming several numbers earns nothing where one
was asked for. Answers with roots, fractions, letters or other LaTeX are compared by math-verify as
one expression, never by a number inside it.
"""

import re
import unicodedata
from fractions import Fraction

from workloads.grpo.rewards.math_checker import shared_checker

# The innermost pair of tags, over several lines if need be.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<minus>-?)(?P<top>(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d{1,3}(?!\w))?)"
    r"(?:\s*/\s*(?P<bottom>\d+))?(?P<percent>\s*%)?"
)
_ARITHMETIC = re.compile(r"[\d\s.+\-*/^()]*\d[\d\s.+\-*/^()]*")
_OPERATOR = re.compile(r"\d\s*\)*\s*[+\-*/^]|[+\-*/^]\s*\(|\(\s*\d")
# A letter that stands for a number, beside a digit or an operator: 7x is not 7.
_VARIABLE = re.compile(r"(?<![^\W\d])[abnxyz](?=\s*[+\-*/^])|(?:\d|[+\-*/^]\s*)[abnxyz](?![^\W\d])")
_ALGEBRA = re.compile(r"[\d\s.+\-*/^()abnxyz]*")
_RAISED = re.compile(r"(?<=[\d)])[²³]|(?<=(?<![^\W\d])[abnxyz])[²³]")
_TUPLE = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
# Between several answers; the comma of 1,234 is none.
_BETWEEN = re.compile(r",(?!\d{3}(?!\d))|;|\band\b")
_SEVERAL = re.compile(r"[\d\s.,;/%()\[\]+-]*")
_POWER = re.compile(r"\d[eE][+-]?\d")
_DIGIT = re.compile(r"(?![0-9])\d")
_MINUS = re.compile(r"(?:^|(?<=[=(,\[]))\s*-\s+(?=[\d.√])")
_SQRT = re.compile(r"(?<![\\\w])sqrt\s*(?=[\d(])")
_LENGTH_UNIT = re.compile(r"(?<=[\d})\s])(?:[cdkm]?m)(?:\^?\{?[23]\}?|[²³])?$")
_RATIO = re.compile(r"(?<=[\d})])\s*:\s*(?=[\d\\(])")
_MATH_SIGN = re.compile(r"[\\√π^_{}$]")
_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
_ROOT = re.compile(r"√\s*(?:\{(?P<braced>[^{}]*)\}|\((?P<round>[^()]*)\)|(?P<bare>\d+|\w))")
_LONGEST_NUMBER = 1000  # characters; Python itself refuses to read more than 4300 digits
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "⁄": "/", "：": ":", "，": ","}
)


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
        left, right = _for_math(truth), _for_math(answer)
        return bool(left and right) and shared_checker().compare(left, right).match
    return _same_numbers(answer, truth)


def _same_numbers(answer: str, truth: str) -> bool:
    """Whether plain texts have the same numbers; in brackets their order counts, too."""
    found, wanted = _numbers(answer), _numbers(truth)
    ordered = [bool(_TUPLE.fullmatch(text)) for text in (answer, truth)]
    if all(ordered) and (answer[0], answer[-1]) != (truth[0], truth[-1]):
        return False
    if any(ordered):
        return bool(found) and found == wanted
    return bool(found) and set(found) == set(wanted)


def _tidy(text: str) -> str:
    text = _DIGIT.sub(lambda match: str(int(match[0])), text)
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = " ".join(text.translate(_SIGNS).split()).strip("*").rstrip(". ")
    text = _MINUS.sub("-", _SQRT.sub("√", text))
    text = _RATIO.sub("/", _LENGTH_UNIT.sub("", text).rstrip())
    return _RAISED.sub(lambda match: "^2" if match[0] == "²" else "^3", text)


def _is_expression(text: str) -> bool:
    """Whether a number inside `text` would not be the whole of it: roots, powers, sums, letters."""
    if _MATH_SIGN.search(text):
        return True
    if _ALGEBRA.fullmatch(text) and _VARIABLE.search(text):
        return True
    return bool(_ARITHMETIC.fullmatch(text) and _OPERATOR.search(text))


def _for_math(text: str) -> str:
    """`text` so that math-verify reads all of it as one expression; empty where it cannot be."""
    if _DELIMITER.search(text):
        return text
    if not _is_expression(text):
        return _plain_for_math(text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m['braced'] or m['round'] or m['bare']}}}", text)
    return "$" + text.replace("π", r" \pi ").replace("°", r"^\circ") + "$"


def _plain_for_math(text: str) -> str:
    """Plain text beside an expression: its one number, or several with nothing else beside them.

    math-verify would take the last of several, so that naming them all would earn something.
    """
    numbers = _numbers(text)
    if len(numbers) > 1:
        several = text.replace(" and ", ", ")
        return f"${several}$" if _SEVERAL.fullmatch(several) else ""
    if numbers and (numbers[0].denominator == 1 or _POWER.search(text)):
        return f" {numbers[0]} "
    return f" {text} "


def _numbers(text: str) -> list[Fraction]:
    """The numbers in plain text; of each equation only what stands after its last `=`."""
    results = " ; ".join(part.rpartition("=")[2] for part in _BETWEEN.split(text))
    found = (_value(match) for match in _NUMBER.finditer(results))
    return [value for value in found if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    bottom = int(match["bottom"] or 1) * (100 if match["percent"] else 1)
    if bottom == 0:
        return None
    value = Fraction(match["top"].replace(",", "")) / bottom
    return -value if match["minus"] else value
