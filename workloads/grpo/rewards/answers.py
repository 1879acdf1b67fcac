"""Extracts answers from their tags, and decides whether two answers mean the same.

An answer is brought into one spelling (`tidy`), the part that concludes it is found, and then it
is compared as a choice (A to H), by all the values that it states (`statements`), or as text.
Naming several values earns nothing where one was wanted. What none of these can read, such as an
integral, is left to math-verify.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from workloads.grpo.rewards.math_checker import shared_checker
from workloads.grpo.rewards.quantities import same_quantities
from workloads.grpo.rewards.statements import read_quantities
from workloads.grpo.rewards.tidy import argument, plain, trimmed

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
LONGEST = 2000  # characters of an answer that are read; a longer one is compared as text
_LONGEST_MATH = 300  # of what math-verify is asked
_BOXED = re.compile(r"\\f?boxed\s*(?=\{)")

_LEAD = re.compile(
    r"(?:(?<![A-Za-z])(?:final |correct |right |my )?(?:answer|ans|result|solution|option|choice)"
    r"(?:s)?(?! in)(?:\s+(?:is|are|would be|must be|equals|to the question is)"
    r"|\s*(?:[:=]|-(?=\s)))*\s*[:=]?"
    r"|(?:答え|解答|正解|答案|选项|選択肢|選ぶのは|(?<!不)选择|(?<!不)选|정답|답|선택지|보기)"
    r"\s*(?:は|是|为|為|은|는|:|=|选|選)?)\s*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?<![A-Za-z])(?:therefore|thus|hence|so|then|consequently)(?![A-Za-z])[,:]?\s*"
    r"|∴|⇒|=>|よって|ゆえに|したがって|だから|なので|因此|所以|따라서|그러므로",
    re.IGNORECASE,
)
_PREMISE = re.compile(r"^\s*(?:since|because|as|given|if|when|first)(?![A-Za-z])", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[^\d\s][^\d\s][.!?])\s+|(?<=\d[.!?])\s+(?=[A-Z])|[。！？\n]+")
_WORKING = re.compile(r"<<[^<>]*>>")

_VALUE = r"(?=\s*[-＄€£¥₩√(]*[\d.])"
_LEAST = (
    r"at (?:the )?(?:very )?least|no (?:less|fewer) than|not (?:less|fewer) than"
    r"|(?:greater|more|larger) than or equal to|(?:a )?minimum of|minimally"
    r"|最低|最少|少なくとも|少なくても|至少|起码|不少于|不小于|不低于|[大多]于或?等于"
    r"|최소한?|적어도"
)
_MOST = (
    r"at (?:the )?(?:very )?most|no more than|not more than|up to|(?:a )?maximum of|not exceeding"
    r"|(?:less|fewer|smaller) than or equal to|最多|最大|多くとも|多くても|せいぜい|高々|至多|顶多"
    r"|不超过|不大于|不多于|不高于|[小少]于或?等于|최대|많아야|많아도|기껏해야"
)
_NOT = r"not|isn't|is not|never|other than|not equal to|anything but|不是|不等于"
_MORE = r"(?:greater|more|larger|bigger|higher) than|over|above|exceeding|exceeds|超过|大于|多于"
_LESS = r"(?:less|fewer|smaller|lower) than|under|below|小于|少于|不到|不足"
_OR_MORE = (
    r"\bor (?:more|greater|higher|above|over|larger|up)\b|\band (?:above|up)\b"
    r"|(?<=\d)\+(?!\s*[\d(√a-zA-Z])|以上|이상"
)
_OR_LESS = r"\bor (?:less|fewer|lower|below|under|smaller)\b|\band below\b|以下|以内|이하"
_NOT_AFTER = (
    r"ではない|ではありません|じゃない|でない|이 아니|가 아니|[個个つ개]?(?:이|가)? 아니|아님"
)
_WORD_START = r"(?:(?<![A-Za-z])|(?=[^\x00-\x7f]))"
# Words before a value, then words behind it; the longer ones first.
_BOUNDS = tuple(
    (re.compile(rf"{_WORD_START}(?:{words})(?![A-Za-z])\s*{_VALUE}", re.IGNORECASE), sign)
    for words, sign in ((_LEAST, "≥"), (_MOST, "≤"), (_NOT, "≠"), (_MORE, ">"), (_LESS, "<"))
)
# A number with what it counts: a word, or a few characters of East Asia.
_COUNTED = (
    r"(?P<value>[\d.]+(?:/\d+)?\s*(?:[a-z]+|°|[\u3041-\u30fe\u4e00-\u9fff\uac00-\ud7a3]{1,3}?)?)"
)
_BOUNDS_AFTER = tuple(
    (re.compile(rf"{_COUNTED}\s*(?:{words})", re.IGNORECASE), sign)
    for words, sign in (
        (_OR_MORE, "≥"),
        (_OR_LESS, "≤"),
        (r"未満|未满|미만|より小さい|より少ない|보다 (?:작|적|덜)[은다]?", "<"),
        (r"より大きい|より多い|を超え|超|초과|보다 (?:큰|크다?|더|많[은다]?)", ">"),
        (_NOT_AFTER, "≠"),
    )
)
_RANGE = re.compile(r"(?<=\d)\s*(?:~|\bto\b|から|到|至)\s*(?=\d)|(?<=\d)\s+-(?=\d)")
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/]| \d)")

_LETTER = "[A-Ha-h]"
_MARKED = re.compile(
    rf"^(?:\(\s*({_LETTER})\s*\)|\[\s*({_LETTER})\s*\]|({_LETTER})\s*[).:、]|({_LETTER})(?=\s*\())"
    r"(?![A-Za-z])\s*(.*)$"
)
_CHOICE_WORD = re.compile(
    r"^(?:(?:i )?(?:choose|pick|select)|options?|choices?|answers?|letter)\s+", re.IGNORECASE
)
_BARE = re.compile(rf"^({_LETTER})$")
_CHOICE_TAIL = re.compile(
    r"(?:(?:が|이|가)?\s*(?:正解|正しい|答え|정답|맞다|맞습니다))?"
    r"(?:选项|項|项|番|번)?(?:です|だ|である|입니다|이다|이에요|正确)?$"
    r"|\s+is\s+(?:the\s+)?(?:correct|right)(?:\s+(?:answer|option|choice|one))?$"
)
_SEVERAL_CHOICES = re.compile(
    r"(?:[A-H]|\([A-H]\))(?:\s*(?:[,;、/&]|\band\b|和|と|및|과|와)\s*(?:[A-H]|\([A-H]\)))+"
)
_POLITE = re.compile(r"(?:です|でした|だ|である|ます|입니다|이다|이에요|예요|的)$")
_ARTICLE = re.compile(
    r"^(?:(?:it|this|that|there|they)(?:'s| is| are)|is|the|an?)\s+(?=\S)", re.IGNORECASE
)
_STATED = re.compile(r"^(?:the )?[a-z]+(?: of [a-z ]+)? (?:is|are|was) (?=[a-z])", re.IGNORECASE)
_YES_NO = re.compile(
    r"^(yes|no|true|false|はい|いいえ|是|否|对|不对|예|네|아니요)(?=$|[,.。、，\s])"
)
_BOTH = re.compile(
    r"^(?:yes|no|true|false|はい|いいえ|是|否|예|네|아니요)\s*(?:and|or|,|/|、|か|と|和|或|또는)\s*"
    r"(?:yes|no|true|false|はい|いいえ|是|否|예|네|아니요)(?:$|[,.。\s])"
)
_LIST_MARK = re.compile(r"[,;、]\s*(?:and\b)?|\band\b|和|及")
_EITHER = re.compile(r"\bor\b|または|或|또는")
_RATIO = re.compile(r"[\d.]+\s*:\s*[\d.]+")
_TO = re.compile(r"(?<=\d)\s+to\s+(?=\d)|(?<=\d)\s*(?:対|比|대)\s*(?=\d)")
_WITHIN = re.compile(
    r"(?:([A-Za-z])\s*(?:∈|\\in(?![A-Za-z]))\s*)?"
    r"([(\[])\s*([^,;()\[\]]+?)\s*[,;]\s*([^,;()\[\]]+?)\s*([)\]])$"
)
_INFINITE = re.compile(r"∞|\\infty|\binf")
_BEYOND = re.compile(r"\\[A-Za-z]+|[∫∑∏∪∩∈]|\|")
_CONTENT = re.compile(r"[^\W_]|[△∠∞∅√π°]")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and in a few words why."""

    match: bool
    why: str


def extract_answer(text: str) -> str | None:
    """The first `<answer>…</answer>` outside of the reasoning, stripped; None without one.

    An empty pair of tags holds no answer either. Reasoning is `<think>…</think>`, and whatever
    stands before a `</think>` that was opened in the prompt. Tags may be in capitals.
    """
    depth, start, closed = 0, -1, False
    found: str | None = None
    inside: str | None = None  # within reasoning that nobody closes, it counts
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
    if answer.strip().casefold() == truth.strip().casefold():
        return Verdict(True, "the same text")
    if len(answer) > LONGEST:
        return Verdict(False, f"an answer of more than {LONGEST} characters")
    wanted, said = final_part(truth[-LONGEST:]), _boxed(answer, last=False)
    try:
        return _compare(plain(said), plain(wanted), said, wanted)
    except RecursionError:
        return Verdict(False, "nested too deeply to be read")


def count_values(truth: str) -> int:
    """How many values the part of a solution states that answers are compared with."""
    text = _without_choice(_led(plain(final_part(truth[-LONGEST:])), last=True))
    return len(read_quantities(_bounded(_joined(text))))


def _compare(answer: str, truth: str, written: str, wanted: str) -> Verdict:
    """The ways of comparing in their order, on texts in one spelling; the others as they were."""
    whole = answer
    answer, truth = _led(answer, last=False), _led(truth, last=True)
    if not _CONTENT.search(answer) or not _CONTENT.search(truth):
        return Verdict(answer == truth, f"{answer!r}, not {truth!r}")
    if _unspaced(answer) == _unspaced(truth):
        return Verdict(True, f"the same: {truth}")
    if (verdict := _compare_choices(answer, truth)) is not None:
        return verdict
    if _RATIO.match(truth):
        answer = _TO.sub(":", answer)
    answer, truth = _as_relations(_without_choice(answer), _without_choice(truth))
    if _BEYOND.search(answer) or _BEYOND.search(truth):
        return _by_math_verify(written, wanted)
    theirs = read_quantities(_bounded(_joined(truth)))
    if not theirs:
        return _compare_texts(answer, truth)
    why = f"no value, where {truth} was wanted"
    for reading in _readings(answer):
        ours = read_quantities(_bounded(reading))
        if not ours:
            continue
        why = same_quantities(ours, theirs)
        if not why:
            return Verdict(True, f"equal: {', '.join(map(str, theirs))}")
    return Verdict(False, why if whole else "nothing")


def _as_relations(*texts: str) -> list[str]:
    """x ∈ [1, 3) as 1 ≤ x < 3, and a bare interval beside it too; other texts as they are."""
    matches = [_WITHIN.match(text) for text in texts]
    names = [match[1] for match in matches if match and match[1]]
    if not names:  # without a name (1, 3) is a point as well
        return list(texts)
    pairs = zip(texts, matches, strict=True)
    return [_relation(match, names[0]) or text if match else text for text, match in pairs]


def _relation(interval: re.Match[str], other_name: str) -> str:
    name, opens, low, high, closes = interval.groups()
    left = "" if _INFINITE.search(low) else f"{low} {'≤' if opens == '[' else '<'} "
    right = "" if _INFINITE.search(high) else f" {'≤' if closes == ']' else '<'} {high}"
    return f"{left}{name or other_name}{right}" if left or right else ""


def _unspaced(text: str) -> str:
    """Without spaces but those between digits: 2 1/2 is not 21/2."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text.casefold())


def _readings(text: str) -> Iterator[str]:
    """100,200 is one number or two."""
    joined = _joined(text)
    yield joined
    if joined != text:
        yield text


def _joined(text: str) -> str:
    text = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)


def _bounded(text: str) -> str:
    """Bounds in words as signs: at least 7 is ≥ 7, 7 or more too; a range is two values."""
    for pattern, sign in _BOUNDS:
        text = pattern.sub(f" {sign} ", text)
    for pattern, sign in _BOUNDS_AFTER:
        text = pattern.sub(rf" {sign} \g<value> ", text)
    return _RANGE.sub(" ; ", text.replace("等于", "="))


def final_part(truth: str) -> str:
    """Of a solution that is worked out the part that holds its answer.

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
    marks = [
        match for match in _LEAD.finditer(text) if _POLITE.sub("", text[match.end() :].strip())
    ]
    if marks:
        text = text[marks[-1 if last else 0].end() :]
    elif concluded := list(_CONCLUSION.finditer(text)):
        text = text[concluded[-1 if last else 0].end() :] or text
    return trimmed(text)


def _choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and what stands behind it; None where there is none."""
    text = trimmed(_CHOICE_TAIL.sub("", _CHOICE_WORD.sub("", text)))
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
    if re.search(rf"(?:^|\b(?:or|and)\b|[,/(])\s*\(?{_LETTER}\)?[.)]?$", said[1]) and not content:
        return Verdict(False, f"several choices, where {letter} was wanted")
    return Verdict(True, f"choice {letter}")


def _compare_texts(answer: str, truth: str) -> Verdict:
    """As words: without articles, polite endings, and what leads up to them."""
    said, wanted = _bare_text(answer), _bare_text(truth)
    if said == wanted or _listed(said) == _listed(wanted):
        return Verdict(True, f"the same: {truth}")
    yes = _YES_NO.match(said)
    if yes and yes[1] == wanted and not _BOTH.match(said):
        return Verdict(True, f"the same: {truth}")
    stated = _bare_text(_STATED.sub("", answer))
    return Verdict(
        stated == wanted, f"{answer}, not {truth}" if stated != wanted else f"the same: {truth}"
    )


def _listed(text: str) -> list[str]:
    """The texts of a list, in any order: red, blue."""
    return sorted(part.strip() for part in _LIST_MARK.split(text) if part.strip())


def _bare_text(text: str) -> str:
    text = _POLITE.sub("", trimmed(text).casefold())
    for _ in range(2):
        text = _ARTICLE.sub("", text)
    if len(text) > 2 and text[0] in "([\"'" and text[-1] in ")]\"'":
        text = text[1:-1]
    return " ".join(re.sub(r"[\"'`]", "", text).split())


def _by_math_verify(answer: str, truth: str) -> Verdict:
    """What only a computer algebra system can read, within its bounds."""
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
