"""Extracts answers from their tags, and decides whether two answers mean the same.

An answer is brought into one spelling (`tidy`), the part that concludes it is found, and then it
is compared as a choice (A to H), by all the values that it states (`statements`), or as text.
Naming several values earns nothing where one was wanted. Anything else, such as an integral, is
left to math-verify.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from workloads.grpo.rewards.bounds import as_range, with_signs
from workloads.grpo.rewards.dates import same_date_or_time
from workloads.grpo.rewards.expressions import are_proportional, difference_of
from workloads.grpo.rewards.math_checker import shared_checker
from workloads.grpo.rewards.quantities import Quantity, is_zero, same_quantities, total_of
from workloads.grpo.rewards.statements import read_quantities
from workloads.grpo.rewards.texts import POLITE, mean_the_same, says_none
from workloads.grpo.rewards.tidy import argument, plain, trimmed
from workloads.grpo.rewards.units import unit_of

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
LONGEST = 2000  # longest answer in characters that is parsed; a longer one is compared as text
_LONGEST_MATH = 300  # longest text in characters for math-verify
_BOXED = re.compile(r"\\f?boxed\s*(?=\{)")

_LEAD = re.compile(
    r"(?:(?<![A-Za-z])(?<!no )(?:final |correct |right |my )?"
    r"(?:answer|ans|result|solution|option|choice)"
    r"(?:s)?(?! in)(?:\s+(?:is|are|would be|must be|equals|to the question is)"
    r"|\s*(?:[:=]|-(?=\s)))*\s*[:=]?"
    r"|(?:答え|解答|正解|答案|(?<![A-H])(?:选项|選択肢|선택지|보기)|選ぶのは|(?<!不)选择|(?<!不)选(?!项)|정답|답)"
    r"\s*(?:は|是|为|為|은|는|:|=|选|選)?)\s*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?<![A-Za-z])(?:therefore|thus|hence|so|then|consequently)(?![A-Za-z])[,:]?\s*"
    r"|∴|⇒|=>|よって|ゆえに|したがって|だから|なので|因此|所以|따라서|그러므로",
    re.IGNORECASE,
)
_PREMISE = re.compile(r"^\s*(?:since|because|as|given|if|when|first)(?![A-Za-z])", re.IGNORECASE)
_MONTH_POINT = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|ept|Oct|Nov|Dec)\."
_SENTENCE = re.compile(
    rf"(?<=[^\d\s][^\d\s][.!?])(?<!{_MONTH_POINT})\s+|(?<=\d[.!?])\s+(?=[A-Z])|[。！？\n]+"
)
_QUOTED = re.compile(r"^[\"'<「『【《]([^\"'<>=]+)[\"'>」』】》]$")
_DRAWN = re.compile("[≅∽∥⊥]")  # how figures stand to each other
_WORKING = re.compile(r"<<[^<>]*>>")
_LETTER = "[A-Ha-h]"
_CHOSEN, _WRONG = rf"\(?{_LETTER}\)?", "(?:wrong|incorrect|false)"
# The denied part of a contrast: "not 8 but 7", "7, not 8", 8ではなく7, 不是8而是7, 8이 아니라 7;
# and of choices: "B is wrong, C is right".
_DENIED = re.compile(
    r"(?<![A-Za-z])not\s[^,;]{1,40}?,?\s+(?:but|it is|it's)\s+(?:rather\s+)?"
    r"|(?:不是|并非).{1,40}?而是|^.{1,40}?(?:ではなく|じゃなく|でなく)て?[、,\s]*(?=\S)"
    r"|^.{1,40}?아니라\s*|(?<=\S)(?:而不是|[,、]?\s*不选|[,、]\s*(?:不是|并非)).{1,40}$"
    r"|(?<=\S)[,、。]\s*[^,、。]{1,40}?(?:ではない|ではありません|아님|아닙니다|아니다)$"
    r"|(?<=[^\s,;(])\s*(?:[,;(]\s*(?:and )?not|(?:and|but) not|rather than|instead of)"
    r"\s[^,;]{1,40}$"
    rf"|^[^\s,;]{{1,20}} is {_WRONG}[,;.]\s*(?:but |and |so )?(?:(?:it is|it's) )?"
    rf"|(?<=\S)[,;.]\s*(?:but |and )?{_CHOSEN} is {_WRONG}$",
    re.IGNORECASE,
)
# What was taken back: "43? No, 42", "43... wait, 42", "43, sorry, 42".
_TAKEN_BACK = re.compile(
    r"^.{1,60}?[,.;?!…—-]\s*(?:(?:no|wait|sorry|oops|actually|i mean|correction|rather|hmm|hold on)"
    r"[,.!:… -]+)+(?:(?:it(?: is|'s)|the answer is|that(?: is|'s)|should be)\s+)?"
    rf"(?=[-+＄(]*\d|\(?{_LETTER}\)?[.]?$|(?:yes|no)\b)",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(
    r"\b(?:can(?:not|'t)|could(?: not|n't)|unable to|impossible to)"
    r" (?:be )?(?:determined?|tell|say|know|decide|sure)\b|\bnot sure (?:if|whether)\b"
    r"|[判断確定]+できません|无法(?:确定|判断)|不(?:能确定|知道)|알 수 없|모르겠",
    re.IGNORECASE,
)
# "Alice is the answer".
_IS_ANSWER = re.compile(
    r"(?:\s+(?:is|are|would be)\s+(?:the |my )?(?:correct |right |final )?answers?"
    r"|\s*(?:が|是|이|가)\s*(?:正解|答え|正确答案|答案|정답)(?:です|だ|입니다|이다)?)$",
    re.IGNORECASE,
)
# A reason after an answer.
_REASON = re.compile(
    r"(?<=[^\s,;:(])[\s,;:(—]*(?<![A-Za-z])(?:because|since)\s.*$"
    r"|(?<=[^\s、,])[、,]?\s*(?:なぜなら|因为|因為|왜냐하면).*$",
    re.IGNORECASE,
)

_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_EUROPEAN = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d.,]*\d)")  # 1.234,50
_EUROS = re.compile(r"(?<![\d.,])(\d+),(\d\d)(?=\s*(?:€|EUR\b|euros?\b))")  # 9,99 €
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/]| \d)")

_MARKED = re.compile(
    rf"^(?:\(\s*({_LETTER})\s*\)|\[\s*({_LETTER})\s*\]|({_LETTER})\s*[).:、]|({_LETTER})(?=\s*\())"
    r"(?![A-Za-z])\s*(.*)$"
)
# Hedges before an answer.
_HEDGE = re.compile(
    r"^(?:i(?: would|'d|'ll| will)? (?:choose|pick|select|go (?:with|for)|say|think|guess|believe)"
    r"(?: (?:that )?it(?: is|'s))?|it(?: is|'s| must be)|must be"
    r"|(?:most )?(?:probably|likely|definitely|certainly|clearly|maybe)"
    r"|我(?:认为|觉得|想)(?:应该)?(?:是|选)?|应该(?:是|选)?|おそらく|たぶん|きっと|아마도?)\s*(?=\S)",
    re.IGNORECASE,
)
_CHOICE_WORD = re.compile(
    r"^(?:choose|pick|select|options?|choices?|answers?|letter)\s+", re.IGNORECASE
)
_ANOTHER_CHOICE = re.compile(
    rf"(?:^|\b(?:or|and)\b|[,/(])\s*\(?{_LETTER}\)?[.)]?$|\b(?:or|and)\s+\(?{_LETTER}[).:]"
)
_BARE = re.compile(rf"^({_LETTER})$")
_CHOICE_TAIL = re.compile(
    r"(?:(?:が|이|가)?\s*(?:正解|正しい|答え|정답|맞다|맞습니다))?"
    r"(?:选项|項|项|番|번)?(?:을? ?선택(?:합니다)?)?"
    r"(?:です|だ|である|입니다|이다|이에요|是?(?:正确|对)的?(?:答案|选项)?)?$"
    r"|を選(?:びます|ぶ|択(?:します|する)?)$|だ?と(?:思います|思う|考えます)$"
    r"|\s+is\s+(?:the\s+)?(?:correct|right)(?:\s+(?:answer|option|choice|one))?$"
)
_SEVERAL_CHOICES = re.compile(
    r"(?:[A-H]|\([A-H]\))(?:\s*(?:[,;、/&]|\band\b|和|と|및|과|와)?\s*(?:[A-H]|\([A-H]\)))+"
)
_TOTAL = re.compile(
    r"合計|全部で|合わせて|あわせて|总共|一共|总计|合计|共计|모두|총|합계|합쳐"
    r"|\b(?:total|totals|totall?ing|altogether|in all)\b",
    re.IGNORECASE,
)
_SUMMED = re.compile(r"[^:,\d]*\d+[^:,\d]*:")  # 7 objects: 3 red, 4 blue
_BETWEEN = re.compile(r"(?<![A-Za-z])between (\S+) and (\S+)")
_OUT_OF = re.compile(r"(\d+) (?:out of|in|of) (\d+)")
_SCALE_LETTER = re.compile(r"(?<=\d)(?:([kK])|M)(?![A-Za-z])")
_EITHER = re.compile(r"\bor\b|または|或|또는")
_RATIO = re.compile(r"[\d.]+\s*:\s*[\d.]+")
_TO = re.compile(r"(?<=\d)\s+to\s+(?=\d)|(?<=\d)\s*(?:対|比|대)\s*(?=\d)")
_WITHIN = re.compile(
    r"(?:([A-Za-z])\s*(?:∈|\\in(?![A-Za-z]))\s*)?"
    r"([(\[])\s*([^,;()\[\]]+?)\s*[,;]\s*([^,;()\[\]]+?)\s*([)\]])$"
)
_LETTER_RELATION = re.compile(
    r".*?(?<![A-Za-z])([A-Za-z])\s*[<>≤≥]|.*?[<>≤≥]\s*([A-Za-z])(?![A-Za-z])"
)
_INFINITE = re.compile(r"∞|\\infty|\binf")
_BEYOND = re.compile(r"\\[A-Za-z]+|[∫∑∏∪∩∈]|\|")
_UNIT = re.compile(r"(?<=\d)\s*([A-Za-zµμ]{2,4})(?![A-Za-z])")
_POINT_EQUATION = re.compile(r"\(([A-Za-z](?:\s*,\s*[A-Za-z])+)\)\s*=\s*\(([^()]+)\)")
_CONTENT = re.compile(r"[^\W_]|[△∠∞∅√π°]")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and a short reason."""

    match: bool
    why: str


def extract_answer(text: str) -> str | None:
    """The first `<answer>…</answer>` outside of the reasoning, stripped; None without one.

    An empty pair of tags holds no answer either. Reasoning is `<think>…</think>`, and whatever
    stands before a `</think>` that was opened in the prompt. Tags may be in capitals.
    """
    depth, start, closed = 0, -1, False
    found: str | None = None
    inside: str | None = None  # within reasoning that is never closed it counts
    for tag in _TAG.finditer(text):
        closes, name = bool(tag[1]), tag[2].lower()
        if name == "answer" and not closes:
            start = tag.end()
        elif name == "answer" and start >= 0:
            content, start = text[start : tag.start()], -1
            if depth == 0 and found is None:
                found = content
            elif depth and inside is None:
                inside = content
        elif name == "think" and not closes:
            depth += 1
        elif name == "think":
            if depth == 0 and not closed:  # opened in the prompt
                found = None
            depth, closed = max(0, depth - 1), True
            inside = inside if depth else None
            start = tag.end() if start >= 0 else start
    said = found if found is not None else inside
    return (said or "").strip() or None


def answers_match(answer: str, truth: str) -> bool:
    """Whether `answer` means the same as `truth`; two empty ones do not."""
    return compare_answers(answer, truth).match


def compare_answers(answer: str, truth: str) -> Verdict:
    """Whether `answer` means the same as `truth`, and why."""
    if not answer.strip() or not truth.strip():
        return Verdict(False, "nothing was answered" if truth.strip() else "no solution")
    if _same_text(answer.strip(), truth.strip()):
        return Verdict(True, "the same text")
    if len(answer) > LONGEST:
        return Verdict(False, f"an answer of more than {LONGEST} characters")
    wanted, said = final_part(truth[-LONGEST:]), _boxed(answer, last=False)
    try:
        return _compare(plain(said), plain(wanted), said, wanted)
    except RecursionError:
        return Verdict(False, "nested too deeply to be read")


def count_values(truth: str) -> int:
    """Number of values in the part of a solution that answers are compared with."""
    text = _without_choice(_led(plain(final_part(truth[-LONGEST:])), last=True))
    return len(_stated(text))


def _compare(answer: str, truth: str, written: str, wanted: str) -> Verdict:
    """Compare by each method in order; `written` and `wanted` are the texts before `tidy`."""
    answer, truth = _led(answer, last=False), _led(truth, last=True)
    if not _CONTENT.search(answer) or not _CONTENT.search(truth):
        return Verdict(answer == truth, f"{answer!r}, not {truth!r}")
    if _same_text(_unspaced(answer), _unspaced(truth)):
        return Verdict(True, f"the same: {truth}")
    if (same_time := same_date_or_time(answer, truth)) is not None:
        return Verdict(same_time, f"the same: {truth}" if same_time else f"{answer}, not {truth}")
    if (verdict := _compare_choices(answer, truth)) is not None:
        return verdict
    if _UNDECIDED.search(answer) and not _UNDECIDED.search(truth):
        return Verdict(False, "undecided")
    if _RATIO.match(truth):
        answer = _TO.sub(":", answer)
        if (wanted_ratio := _ratio(truth)) and (said_ratio := _ratio(answer)):
            same = wanted_ratio == said_ratio
            return Verdict(same, f"a ratio of {answer}{'' if same else f', not {truth}'}")
    answer, truth = _as_relations(_without_choice(answer), _without_choice(truth))
    answer, truth = _named_parts(answer, truth), _named_parts(truth, answer)
    if (drawn := _DRAWN.findall(truth)) and drawn != _DRAWN.findall(answer):
        return Verdict(False, f"{answer}, not {truth}")
    if _same_equation(answer, truth):
        return Verdict(True, f"the same equation: {truth}")
    if _BEYOND.search(answer) or _BEYOND.search(truth):
        return _by_math_verify(written, wanted)
    wanted_values = _stated(truth)
    if not wanted_values:
        same = mean_the_same(answer, truth)
        return Verdict(same, f"the same: {truth}" if same else f"{answer}, not {truth}")
    return _compare_values(answer, truth, wanted_values)


def _stated(text: str) -> list[Quantity]:
    return read_quantities(with_signs(_joined(text)))


def _compare_values(answer: str, truth: str, wanted: Sequence[Quantity]) -> Verdict:
    """Compare stated values; a text with several readings is right if one reading is."""
    why = f"no value, where {truth} was wanted"
    for reading in _readings(answer):
        ours = read_quantities(with_signs(reading))
        if not ours:
            continue
        if len(wanted) == 1 and (_TOTAL.search(reading) or _SUMMED.match(reading)):
            ours = total_of(ours)
        why = same_quantities(ours, wanted)
        if not why:
            return Verdict(True, f"equal: {', '.join(map(str, wanted))}")
    span = as_range(truth)
    if span and not same_quantities(_stated(as_range(answer) or answer), _stated(span)):
        return Verdict(True, f"the same range: {truth}")
    if is_zero(wanted) and says_none(answer):
        return Verdict(True, "none, which is 0")
    return Verdict(False, why)


def _same_equation(answer: str, truth: str) -> bool:
    """Whether two equations in several letters are equivalent, such as 2x - y + 1 = 0 and y = 2x +
    1."""
    sides = [text.split("=") for text in (answer, truth)]
    if any(len(pair) != 2 or re.search("[<>≤≥≠≈,;]", "".join(pair)) for pair in sides):
        return False
    ours, theirs = (difference_of(*pair) for pair in sides)
    return ours is not None and theirs is not None and are_proportional(ours, theirs)


def _named_parts(text: str, other: str) -> str:
    """(a, b) = (3, 5) as a = 3, b = 5, where the other text names its values so."""
    found = _POINT_EQUATION.fullmatch(text)
    if found is None or "=" not in other or "(" in other:
        return text
    names, values = found[1].split(","), found[2].split(",")
    if len(names) != len(values):
        return text
    return ", ".join(f"{n.strip()} = {v.strip()}" for n, v in zip(names, values, strict=True))


def _as_relations(*texts: str) -> list[str]:
    """x ∈ [1, 3) as 1 ≤ x < 3, and a bare interval beside it too; other texts as they are."""
    matches = [_intervals(text) for text in texts]
    names = [match[0][1] for match in matches if match and match[0][1]]
    if not names:  # without a name (1, 3) is a point as well
        relations = [_LETTER_RELATION.match(text) for text in texts]
        names = [found[1] or found[2] for found in relations if found]
        if not names or not any(len(match) > 1 for match in matches):
            return list(texts)
    pairs = zip(texts, matches, strict=True)
    return [
        " or ".join(_relation(interval, names[0]) for interval in match) or text
        for text, match in pairs
    ]


def _intervals(text: str) -> list[re.Match[str]]:
    """The intervals of a text: one, or several joined by ∪; else none."""
    parts = [_WITHIN.match(part.strip()) for part in re.split(r"∪|\\cup", text)]
    return [part for part in parts if part] if all(parts) else []


def _relation(interval: re.Match[str], other_name: str) -> str:
    name, opens, low, high, closes = interval.groups()
    left = "" if _INFINITE.search(low) else f"{low} {'≤' if opens == '[' else '<'} "
    right = "" if _INFINITE.search(high) else f" {'≤' if closes == ']' else '<'} {high}"
    return f"{left}{name or other_name}{right}" if left or right else ""


def _ratio(text: str) -> list[Fraction] | None:
    """The terms of a ratio of three or more, divided by the first: 2:4:6 is 1:2:3; else None."""
    if not re.fullmatch(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?){2,}", text):
        return None
    terms = [Fraction(term) for term in re.split(r"\s*:\s*", text)]
    return [term / terms[0] for term in terms] if terms[0] else terms


def _unspaced(text: str) -> str:
    """Without spaces but those between digits: 2 1/2 is not 21/2."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def _same_text(one: str, other: str) -> bool:
    """Whether two texts differ in the case of letters at most, and not in units: mV and MV."""
    if one.casefold() != other.casefold():
        return False
    pairs = zip(_UNIT.findall(one), _UNIT.findall(other), strict=False)
    return one == other or all(unit_of(ours) == unit_of(theirs) for ours, theirs in pairs)


def _readings(text: str) -> Iterator[str]:
    """Readings of a text: 100,200 as one number or two, 3 out of 4 as a share, 1.5k as 1500."""
    joined = _joined(text)
    texts = [joined, text, _OUT_OF.sub(r"\1/\2", joined)]
    texts += [_SCALE_LETTER.sub(lambda m: "*1000" if m[1] else "*1000000", joined)]
    texts += [_REASON.sub("", joined), _BETWEEN.sub(r"> \1 and < \2", joined)]
    texts += [re.sub("[()]", " , ", joined)] if _TOTAL.search(joined) else []
    yield from dict.fromkeys(texts)


def _joined(text: str) -> str:
    text = _EUROPEAN.sub(lambda match: match[0].replace(".", "").replace(",", "."), text)
    text = _EUROS.sub(r"\1.\2", text)
    text = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)


def final_part(truth: str) -> str:
    """The part of a worked-out solution that holds its answer.

    What stands behind the last `####`, in the last `\\boxed{}`, behind "the answer is", or what the
    last sentence concludes.
    """
    if "####" in truth and (behind := truth.rpartition("####")[2].strip()):
        return behind
    truth = _WORKING.sub("", truth)
    if _BOXED.search(truth):
        return _boxed(truth, last=True)
    marked = [match.end() for match in _LEAD.finditer(truth)]
    if marked and (behind := truth[marked[-1] :].strip()) and trimmed(behind):
        return behind
    sentences = [part for part in _SENTENCE.split(truth.strip()) if part.strip()]
    last = sentences[-1] if sentences else truth
    concluded = [match.end() for match in _CONCLUSION.finditer(last)]
    if concluded and last[concluded[-1] :].strip():
        return last[concluded[-1] :]
    if _PREMISE.match(last) and "," in last:
        return last.rpartition(",")[2]
    return last


def _boxed(text: str, last: bool) -> str:
    """The content of the last box, or of all of them; the text itself without one."""
    boxes = [argument(text, match.end())[0] for match in _BOXED.finditer(text)]
    whole = [box for box in boxes if box is not None]
    if not whole:
        return text
    return whole[-1] if last else " ; ".join(dict.fromkeys(whole))


def _led(text: str, last: bool) -> str:
    """What follows "the answer is": the first one, so that a second answer is seen, or the last."""
    marks = [match for match in _LEAD.finditer(text) if POLITE.sub("", text[match.end() :].strip())]
    if marks:
        text = text[marks[-1 if last else 0].end() :]
    elif concluded := list(_CONCLUSION.finditer(text)):
        text = text[concluded[-1 if last else 0].end() :] or text
    text = _TAKEN_BACK.sub("", text)
    said = _IS_ANSWER.sub("", _HEDGE.sub("", _DENIED.sub("", text) or text))
    return trimmed(_QUOTED.sub(r"\1", said))


def _choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and what stands behind it; None where there is none."""
    text = trimmed(_CHOICE_TAIL.sub("", _CHOICE_WORD.sub("", _REASON.sub("", text))))
    if bare := _BARE.match(text):
        return bare[1].upper(), ""
    marked = _MARKED.match(text)
    if marked is None:
        return None
    letter = next(part for part in marked.groups()[:4] if part)
    if marked[4] and re.match(r"[a-h]", marked[4]):
        return None  # f(2) is no choice
    if marked[4] and re.match(r"\s*\([^()]*,[^()]*\)", marked[5]):
        return None  # a point, A(1, 2)
    return letter.upper(), trimmed(marked[5])


def _without_choice(text: str) -> str:
    found = _choice(text)
    return found[1] if found and found[1] else text


def _compare_choices(answer: str, truth: str) -> Verdict | None:
    """By letter where the solution is one of a choice, or several; None where it is none."""
    if _SEVERAL_CHOICES.fullmatch(truth) and _SEVERAL_CHOICES.fullmatch(answer):
        if "".join((truth, answer)).isalpha():
            return None  # AC and CA may be a segment as well
        wanted_letters, letters = (sorted(re.findall("[A-H]", item)) for item in (truth, answer))
        why = f"choices {', '.join(letters)}"
        same = letters == wanted_letters
        return Verdict(same, why if same else f"{why}, not {', '.join(wanted_letters)}")
    if _SEVERAL_CHOICES.fullmatch(truth) and _EITHER.search(answer):
        return Verdict(False, f"one of several choices, where {truth} was wanted")
    wanted, said = _choice(truth), _choice(answer)
    if wanted is None:
        return None
    letter, content = wanted
    if said is None:
        return None if content else Verdict(False, f"no single choice, where {letter} was wanted")
    if said[0] != letter:
        return Verdict(False, f"choice {said[0]}, not {letter}")
    if content and said[1] and not _compare(said[1], content, said[1], content).match:
        return Verdict(False, f"choice {letter}, but {said[1]}, not {content}")
    if _ANOTHER_CHOICE.search(said[1]) and not content:
        return Verdict(False, f"several choices, where {letter} was wanted")
    return Verdict(True, f"choice {letter}")


def _by_math_verify(answer: str, truth: str) -> Verdict:
    """Compare by math-verify what only a computer algebra system can read."""
    if len(answer) > _LONGEST_MATH or len(truth) > _LONGEST_MATH:
        return Verdict(False, "a formula that is too long to be read")
    if not _is_cheap(answer) or not _is_cheap(truth):
        return Verdict(False, "a formula that is not whole, or too deep to be read")
    match = shared_checker().compare(_for_math(truth), _for_math(answer), brief=True).match
    return Verdict(match, "math-verify: equal" if match else "math-verify: not equal")


def _is_cheap(text: str) -> bool:
    """Whether brackets close, are not deep, and no power stands on a power."""
    depth = deepest = 0
    for letter in text:
        depth += (letter in "{(") - (letter in "})")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    towers = re.search(r"\d\s*\^\s*\{?\s*\d+\s*\^|\^\s*\{?\d{3,}|!\s*!", text)
    return depth == 0 and deepest <= 12 and not towers


def _for_math(text: str) -> str:
    if re.search(r"\$|\\\(|\\\[", text):
        spans = re.findall(r"\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]", text)
        return text if len(spans) == 1 else ""
    return f"${text}$"
