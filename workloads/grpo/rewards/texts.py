"""Answers in words: equal apart from articles, politeness and order; yes and no; none."""

import re

from workloads.grpo.rewards.tidy import trimmed

POLITE = re.compile(r"(?:です|でした|だ|である|ます|입니다|이다|이에요|예요|的)$")
_ARTICLE = re.compile(
    r"^(?:(?:it|this|that|there|they)(?:'s| is| are)|is|(?:(?:to|on|in|at) )?the|an?|it(?= can))\s+"
    r"(?=\S)",
    re.IGNORECASE,
)
# Words after a name that add nothing: the red one, 右側, 红色.
_PRONOUN = re.compile(
    r"(?<=[a-z]) (?:ones?|1)$|(?<=[左右上下前後后])[側侧边邊]$"
    r"|(?<=[红紅赤蓝藍青绿緑黄黑黒白紫橙])色$"
)
_STATED = re.compile(r"^(?:the )?[a-z]+(?: of [a-z ]+)? (?:is|are|was) (?=[a-z])", re.IGNORECASE)
_NO_SOLUTION = re.compile(
    r"^[^\d,]*\bno (?:real )?(?:solutions?|roots?)\b(?! (?:other|except|but|besides))[^\d,]*$"
    r"|(?:実数)?解(?:は|が)?(?:なし|無し|ない|ありません|存在しない)|(?:无|没有|無)(?:实数)?解"
    r"|(?:실)?(?:해|근)(?:가|는|이|은)? ?(?:없다|없음|없습니다)"
)
_ENDLESS = re.compile(r"^(?:there are )?(infinitely many|infinite) solutions$")
_YES = r"yes|yeah|yep|true|correct|はい|正しい|是|是的|对|對|正确|正確|예|네|맞다|맞습니다|참"
_NO = (
    r"no|nope|false|incorrect|not (?:correct|true)|いいえ|正しくない|誤り|否|不是|不对|不對|不正确"
    r"|错|错误|아니요|아니오|아니다|거짓"
)
_YES_NO = re.compile(rf"^(?:({_YES})|({_NO}))(?=$|[,.。、，!]|\s(?!solution))")
_JOINT = r"\s*(?:and|or|,|/|、|か|と|和|或|또는)\s*"
_BOTH = re.compile(rf"^(?:(?:{_YES}){_JOINT}(?:{_NO})|(?:{_NO}){_JOINT}(?:{_YES}))(?:$|[,.。\s])")
# A count of zero; "no solution" of an equation is another answer.
_UNCOUNTED = r"(?:real |such )?(?:solution|answer|value|way|root|idea)"
_NOTHING = re.compile(
    rf"^(?:none(?: of (?:them|these|those))?|nothing|no (?!{_UNCOUNTED})[a-z ]+s"
    rf"|there (?:is|are) (?:none|no (?!{_UNCOUNTED})[^,;\d]*)"
    rf"|there (?:is|are)(?:n't| not) any(?! {_UNCOUNTED})\b[^,;\d]*"
    r"|[^解答根值]*(?:ありません|ない|なし|没有|无)"
    r"|(?:[^해답]*(?:이|가) )?(?:하나도 )?(?:없다|없습니다|없음))$",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"[,;、]\s*(?:and\b)?|\band\b|和|及")


def mean_the_same(answer: str, truth: str) -> bool:
    """Whether two tidied texts have the same meaning in words."""
    said, wanted = _bare(answer), _bare(truth)
    if said == wanted or _listed(said) == _listed(wanted):
        return True
    ours, theirs = _YES_NO.match(said), _YES_NO.fullmatch(wanted)
    if ours and theirs and not _BOTH.match(said) and bool(ours[1]) == bool(theirs[1]):
        return True
    return _bare(_STATED.sub("", answer)) == wanted


def says_none(text: str) -> bool:
    """Whether a text states a count of zero in words."""
    return bool(_NOTHING.match(text))


def _listed(text: str) -> list[str]:
    """The texts of a list, in any order: red, blue."""
    return sorted(part.strip() for part in _LIST_MARK.split(text) if part.strip())


def _bare(text: str) -> str:
    text = POLITE.sub("", trimmed(text).casefold())
    for _ in range(2):
        text = _ARTICLE.sub("", text)
    text = _NO_SOLUTION.sub("no solution", _PRONOUN.sub("", text))
    text = _ENDLESS.sub(r"\1", text)
    if len(text) > 2 and text[0] in "([\"'" and text[-1] in ")]\"'":
        text = text[1:-1]
    return " ".join(re.sub(r"[\"'`]", "", text).split())
