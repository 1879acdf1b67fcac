"""Relations in words, written as signs: at least 7 is ≥ 7, 5 to 9 is ≥ 5 and ≤ 9."""

import re
from types import MappingProxyType

_VALUE = r"(?=\s*(?:有|是|为|要|需要?|得|there (?:are|is)|we have)?\s*[-＄€£¥₩√(]*[\d.])"
_LEAST = (
    r"at (?:the )?(?:very )?least|not? (?:less|fewer|smaller|lower) than"
    r"|(?:greater|more|larger) than or equal to|(?:a )?minimum of|minimally"
    r"|最低|最少|少なくとも|少なくても|至少|起码|不少于|不小于|不低于|[大多]于或?等于"
    r"|최소한?|적어도"
)
_MOST = (
    r"at (?:the )?(?:very )?most|not? (?:more|greater|larger|higher) than|up to|(?:a )?maximum of"
    r"|(?:can|must|do|does|will)? ?(?:not|n't) exceed(?:ing)?"
    r"|(?:less|fewer|smaller) than or equal to|最多|最大|多くとも|多くても|せいぜい|高々|至多|顶多"
    r"|不超过|不大于|不多于|不高于|[小少]于或?等于|최대|많아야|많아도|기껏해야"
)
_NOT = (
    r"(?:real numbers?|reals) (?:except|other than|but)(?: for)?(?: [a-z] ?=)?"
    r"|(?:can|must) ?not be|can't be|not|isn't|is not|never|other than|not equal to"
    r"|anything but|all but|except(?: for)?|不是|不等于|除了?|没有"
)
_MORE = (
    r"(?:greater|more|larger|bigger|higher) than|over|above|exceeding|exceeds|超过|大于|多于"
    r"|(?:just|slightly) (?:over|above|more than)|不止|不只"
)
_LESS = (
    r"(?:less|fewer|smaller|lower) than|under|below|小于|少于|不到|不足|将近"
    r"|(?:just|slightly) (?:under|below|less than)|almost|nearly"
)
_OR_MORE = (
    r"\bor (?:more|greater|higher|above|over|larger|up)\b|\band (?:above|up)\b"
    r"|\b(?:at (?:the )?(?:very )?least|minimum)\b"
    r"|(?<=\d)\+(?:(?!\s*[\d(√a-zA-Z])|(?=\s+(?!sin|cos|tan|log|sqrt|exp)[a-zA-Z]{3}))"
    r"|以上|이상|より大きいか等しい|보다 크거나 같[다은음]?"
)
_OR_LESS = (
    r"\bor (?:less|fewer|lower|below|under|smaller)\b|\band below\b|以下|以内|이하"
    r"|より小さいか等しい|보다 작거나 같[다은음]?"
    r"|\b(?:at (?:the )?(?:very )?most|max(?:imum)?|tops)\b"
)
_NOT_AFTER = (
    r"ではない|ではありません|じゃない|でない|以外|を除[いく]|이외|제외"
    r"|[個个つ개]?(?:이|가)?\s?아[니닌닙님]"
    r"|\bis (?:wrong|incorrect|false|too (?:low|high|small|large|big|much|many))\b"
    r"|\b(?:is not|isn't) (?:it|right|correct|true|possible|the (?:[a-z]+ )?answer)\b"
    r"|(?:は|が)(?:間違い|誤り|不正解|違[ういっ])|是?(?:错误?的|不对|不正确)"
    r"|(?:은|는)? ?(?:틀[렸린립]|오답)"
)
_WORD_START = r"(?:(?<![A-Za-z])|(?=[^\x00-\x7f]))"
# Words before a value, then words after it; longer ones first.
_BOUNDS = tuple(
    (re.compile(rf"{_WORD_START}(?:{words})(?![A-Za-z])\s*{_VALUE}", re.IGNORECASE), sign)
    for words, sign in ((_LEAST, "≥"), (_MOST, "≤"), (_NOT, "≠"), (_MORE, ">"), (_LESS, "<"))
)
# A number with its unit or counter: a word, or a few East Asian characters.
_COUNTED = (
    r"(?<![\d.])(?P<value>[\d.]+(?:/\d+)?"
    r"\s*(?:[a-z]+|°|%|[\u3041-\u30fe\u4e00-\u9fff\uac00-\ud7a3]{1,3}?)?)"
)
_BOUNDS_AFTER = tuple(
    (re.compile(rf"{_COUNTED}\s*(?:{words})", re.IGNORECASE), sign)
    for words, sign in (
        (_OR_MORE, "≥"),
        (_OR_LESS, "≤"),
        (r"未満|未满|미만|不到|不足|足らず|より小さい|より少ない|보다 (?:작|적|덜)[은다]?", "<"),
        (r"より大きい|より多い|を超え|超|초과|보다 (?:큰|크다?|더|많[은다]?)", ">"),
        (_NOT_AFTER, "≠"),
    )
) + tuple(
    (re.compile(rf"比\s*{_COUNTED}\s*{words}"), sign)
    for words, sign in (
        ("[多大高长]", ">"),
        ("[少小低短]", "<"),
    )
)
_TO = r"(?:~|(?<![A-Za-z])(?:to|through)(?![A-Za-z])|から|到|至|에서|부터)"
_RANGE = re.compile(
    r"(?:(?<![A-Za-z])from )?"
    rf"(?<![\d.])(?P<low>\d[\d.]*)(?:\s*[a-z°%]{{1,3}})?\s*{_TO}\s*(?P<high>\d)"
    r"|(?<![A-Za-z])between (?P<first>\d[\d.]*) and (?P<second>\d)"
    r"|(?<![\d.])(?P<left>\d[\d.]*)\s+-(?P<right>\d)"
)
_DASHED = re.compile(
    r"(?P<start>\d+(?:\.\d+)?)[^\d\s.~-]{0,4}\s*[-~]\s*(?P<end>\d+(?:\.\d+)?)(?P<unit>\D*)"
)
_AND = re.compile(r"并?且|かつ")
# x is positive, xは3: a name before a value.
_NAMED = re.compile(
    r"(?<![A-Za-z])([A-Za-z])\s*(?:は|은|는|이|가|是|为|為|(?<=\s)is(?=\s))\s*(?=[-\d√(])"
)
_SIGNED = re.compile(
    r"^(?:(?P<name>[A-Za-z])\s*(?:is|must be|は|是|은|는)\s*)?"
    r"(?:(?P<above>positive|正(?:の数|数)|양수)|(?P<below>negative|負の数|负数|음수)"
    r"|(?P<least>non-?negative|非负数|非負)|(?P<most>non-?positive|非正数?))"
    r"(?: (?:real )?numbers?|です|である|입니다|이다)?$",
    re.IGNORECASE,
)
_SIGNS = MappingProxyType({"above": ">", "below": "<", "least": "≥", "most": "≤"})
_BEFORE = "\x05"  # marks a bound that was written after its value


def with_signs(text: str) -> str:
    """`text` with bounds and ranges as relations; ranges of numbers without words stay."""
    for pattern, sign in _BOUNDS:
        text = pattern.sub(f" {sign} ", text)
    for pattern, sign in _BOUNDS_AFTER:
        text = pattern.sub(rf" {_BEFORE}{sign} \g<value> ", text)
    if signed := _SIGNED.match(text):
        return f"{signed['name'] or ''} {_SIGNS[str(signed.lastgroup)]} 0".strip()
    head, *bounds = _AND.sub(" and ", text.replace("等于", "=")).split(_BEFORE)
    return _NAMED.sub(r"\1 = ", _RANGE.sub(_ends, head + " ; ".join(bounds)))


def _ends(match: re.Match[str]) -> str:
    low, high = (part for part in match.groups() if part)
    return f"≥ {low} ; ≤ {high}"


def as_range(text: str) -> str | None:
    """`5-9 cm` with the sign ~ of ranges, since - may be a difference; None for other texts."""
    found = _DASHED.fullmatch(text)
    if found is None or float(found["start"]) >= float(found["end"]):
        return None
    return f"{found['start']} ~ {found['end']}{found['unit']}"
