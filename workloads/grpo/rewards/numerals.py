"""Numbers written as words or in other scripts, turned into digits: seven, 十二, 일곱, 三分の二."""

import re
from types import MappingProxyType

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH = MappingProxyType(
    {word: value for value, word in enumerate(_UNITS.split())}
    | {word: 10 * (place + 2) for place, word in enumerate(_TENS.split())}
    | {"dozen": 12}
)
_ENGLISH_SCALES = MappingProxyType(
    {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
    | {"lakh": 10**5, "crore": 10**7}
)
_PARTS = MappingProxyType(
    {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
    | {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
)
_WORD = "|".join(sorted([*_ENGLISH, *_ENGLISH_SCALES], key=len, reverse=True))
_AFTER_SCALE = "|".join(f"(?<={name})" for name in _ENGLISH_SCALES)
_RUN = re.compile(
    rf"\b(?:{_WORD})(?:(?:[ -]|(?:{_AFTER_SCALE})\s+and\s+)(?:{_WORD}))*\b", re.IGNORECASE
)
_PART_NAMES = "|".join(sorted(_PARTS, key=len, reverse=True))
_PART = re.compile(rf"(?<![\d/.,])\b(\d+|an?)[ -]({_PART_NAMES})s?\b", re.IGNORECASE)
_LONE_HALF = re.compile(r"^half(?: an?)?\b|(?<=and )half\b|\bhalf(?= of \d)", re.IGNORECASE)
# 1 and 1/2, 1と1/2, 2又1/2
_AND_PART = re.compile(r"(?<![\d./])(\d+)\s*(?:\band\b|又|と|과|와)\s*(\d+/\d+)(?![\d/])")
_UNIT_AND_HALF = re.compile(r"\b(\d+|an?) ([a-z]{2,}) and (?:a half|1/2)\b", re.IGNORECASE)
_SCALED = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?) (hundred|thousand|million|billion|trillion|lakh|crore|dozen)s?\b",
    re.I,
)
_ORDINAL_NAMES = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_ORDINALS = tuple(_ORDINAL_NAMES.split())
_ORDINAL = re.compile(rf"(?:the )?({'|'.join(_ORDINALS)})[.]?", re.IGNORECASE)
# "one" is a pronoun as well: a number only alone or beside another alternative.
_DIGIT = "|".join(_UNITS.split()[:10])
_SPOKEN_POINT = re.compile(
    rf"(?:\b((?:{_WORD})(?:[ -](?:{_WORD}))*|\d+) |^)point ((?:{_DIGIT}|\d)(?: (?:{_DIGIT}))*)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\bone\b(?!\s*(?:or|and|,|$|[-.]?\s*$|half|third|quarter))", re.IGNORECASE)

_HAN_DIGITS = MappingProxyType(
    dict(zip("〇零一二三四五六七八九", (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
    | dict(zip("壱弐参两兩", (1, 2, 3, 2, 2), strict=True))
)
_HAN_SCALES = MappingProxyType({"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000})
_MYRIADS = MappingProxyType(
    {"万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8, "만": 10**4, "억": 10**8}
)
_HAN = "".join([*_HAN_DIGITS, *_HAN_SCALES, "万萬億亿"])
# Allowed before and after a kanji numeral: not the rest of a word, as in 一共.
_HAN_RUN = re.compile(
    rf"(?<![〇\u4e00-\u9fff])[{_HAN}]+(?![〇\u4e00-\u9fff])"
    rf"|(?<=[负負])[{_HAN}]+(?![\u4e00-\u9fff])|(?<=[年月])[{_HAN}]+(?=[月日])|(?<=[割成])[{_HAN}](?=分|$)"
    rf"|(?<![\u4e00-\u9fff])[{_HAN}]+(?=[比対][{_HAN}])|(?<=[比対])[{_HAN}]+"
    rf"|(?<=[是有共约約計计为為第])[{_HAN}]+(?![共般样緒])"
    rf"|(?<![\u4e00-\u9fff])[{_HAN}]+(?=[個个つ人本枚匹頭头只隻台冊册回次度円元米点點分秒時时年月日歳岁平厘千海小块塊張张件割成斤打])"
)
_HALF = re.compile(r"半分|一半|절반|^[半반]$")
# Times of the day: 10時30分, 3点半.
_CLOCK = re.compile(
    r"(?<!\d)(\d{1,2})\s*(?:時(?!間)|[点點]|시(?!간))\s*(?:(\d{1,2})\s*[分분]|[半반](?![径分]))"
)
# 3時間半, 两个半小时, 2시간 반; not the radius of 3の半径.
_AND_HALF = re.compile(
    r"(?<!\d)(\d+)\s*(?:[个個つ개](?=\s*[半반])|(時間|小时|时间|年|[かヶ個个]月|日|天|分|秒|杯|斤|倍|시간|년|개월|일|배))?"
    r"\s*[半반](?![径分期数額지경])"
)
# Tenths, and hundredths after them: 3割5分, 八成, 3할.
_TENTHS = re.compile(r"(?<![\d.])(\d)\s*(?:割|成(?![年功人])|할)(?:\s*(\d)(?:\s*[分푼]|$))?")
_DOZENS = re.compile(r"(?:(?<![\d.])(\d+)|半)\s*(?:ダース|打(?![\u4e00-\u9fff])|다스)")
_HAN_PART = re.compile(r"(?<!\d)(\d+)\s*分[の之]\s*(\d+)|(?<!\d)(\d+)\s*분의\s*(\d+)")
_TIMES_MYRIAD = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([万萬億亿만억])")
# 1万5千, 1万5000; digits after it are never part of another number.
_MYRIAD_AND = re.compile(
    r"(?<![\w.])(\d+)\s*([万萬億亿만억])\s*(\d{1,4})([千百十천백십]?)(?![\d.,])"
)
# 3千円, 2천 5백; not the kilo- of 3千米.
_TIMES_SCALE = re.compile(
    r"(?<![\w.])(\d+)\s*(千(?![米克瓦卡帕焦赫伏安字])|[百천백])(?:\s*(\d)\s*([百백]))?(?!\d)"
)
_JAPANESE = MappingProxyType(
    {"ひとつ": 1, "ふたつ": 2, "みっつ": 3, "よっつ": 4, "いつつ": 5, "むっつ": 6, "ななつ": 7}
    | {"ひとり": 1, "ふたり": 2, "やっつ": 8, "ここのつ": 9, "とお": 10, "ゼロ": 0}
)
_JAPANESE_RUN = re.compile(
    "(?<![ぁ-ん])(?:" + "|".join(_JAPANESE) + r")|(?<=[はが、])(?:" + "|".join(_JAPANESE) + ")"
)
_KOREAN = MappingProxyType(
    {"하나": 1, "한": 1, "둘": 2, "두": 2, "셋": 3, "세": 3, "넷": 4, "네": 4, "다섯": 5}
    | {"여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9}
)
_KOREAN_TENS = MappingProxyType(
    {"열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50}
)
_SINO = MappingProxyType(
    dict(zip("영공일이삼사오육칠팔구", (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
)
_SINO_SCALES = MappingProxyType({"십": 10, "백": 100, "천": 1000})
_SINO_DIGITS = "".join(_SINO)
_SINO_ALL = "".join([_SINO_DIGITS, *_SINO_SCALES])
_KOREAN_COUNTERS = r"개|명|마리|권|대|번|살|시간|장|잔|병|송이|그루|자루"
_KOREAN_END = rf"(?=\s*(?:{_KOREAN_COUNTERS}|입니다|이다|이에요|예요|$|[.\s]))"
# 네 alone is "yes".
_KOREAN_NAMES = "|".join(sorted(_KOREAN, key=len, reverse=True)).replace(
    "네", rf"네(?=\s*(?:{_KOREAN_COUNTERS}))"
)
_KOREAN_RUN = re.compile(
    rf"(?<![가-힣])({'|'.join(_KOREAN_TENS)})?\s*({_KOREAN_NAMES})?{_KOREAN_END}"
)
_SINO_PART = re.compile(
    rf"(?<![가-힣])[{_SINO_ALL}]+(?=\s*분의)|(?<=분의)\s*[{_SINO_ALL}]+(?=입니다|이다|[^가-힣]|$)"
)
_SINO_RUN = re.compile(
    rf"(?<![가-힣])(?:[{_SINO_ALL}만억]+ ?)?[{_SINO_ALL}만억]+"
    rf"(?:{_KOREAN_END}|(?=\s*(?:%|원|미터|센티|킬로|그램|도(?![가-힣]))))"
)
_SINO_POINT = re.compile(
    rf"(?<![가-힣])([{_SINO_ALL}]+)\s*점\s*([{_SINO_DIGITS}](?: ?[{_SINO_DIGITS}])*){_KOREAN_END}"
)
_POINT = re.compile(
    rf"(?<![{_HAN}\u4e00-\u9fff])([{_HAN}]+)[点點]([{''.join(_HAN_DIGITS)}]+)(?![{_HAN}分时時])"
)


def in_digits(text: str) -> str:
    """`text` with its number words replaced by digits.

    Kanji, kana and hangul are read only without a digit beside them: 一共7個 is 7.
    """
    text = _HALF.sub(" 1/2 ", text)
    text = re.sub(rf"[{_HAN}]+(?=分[の之]|又)|(?<=分[の之])[{_HAN}]+", lambda m: _han(m[0]), text)
    text = _SINO_PART.sub(lambda m: _sino(m[0]), text)
    if not re.search(r"\d", text):
        text = _POINT.sub(lambda m: f"{_han(m[1])}.{''.join(map(_han, m[2]))}", text)
        text = _SINO_POINT.sub(
            lambda m: f"{_sino(m[1])}.{''.join(map(_sino, m[2].replace(' ', '')))}", text
        )
        text = _HAN_RUN.sub(lambda match: _han(match[0]), text)
        text = _JAPANESE_RUN.sub(lambda match: str(_JAPANESE[match[0]]), text)
        text = _SINO_RUN.sub(lambda match: _sino(match[0]), text)
        text = _KOREAN_RUN.sub(_korean, text)
    text = re.sub(r"(?:百|100)分[の之](\d+(?:\.\d+)?)", r"\1%", text)
    text = _HAN_PART.sub(lambda m: f" {m[2] or m[4]}/{m[1] or m[3]}", text)
    text = _CLOCK.sub(lambda m: f"{m[1]}:{m[2] or 30}", text)
    text = _TENTHS.sub(lambda m: f"{m[1]}{m[2] or 0}%", text)
    text = _DOZENS.sub(lambda m: str(12 * int(m[1]) if m[1] else 6), text)
    text = _AND_HALF.sub(lambda m: f"{m[1]}.5{m[2] or ''}", text)
    text = _MYRIAD_AND.sub(_myriad_and, text)
    text = _TIMES_SCALE.sub(_times_scale, text)
    text = _TIMES_MYRIAD.sub(lambda m: _times(m[1], _MYRIADS[m[2]]), text)
    return _english(text)


def _english(text: str) -> str:
    has_digits = bool(re.search(r"\d", text))

    def digits(match: re.Match[str]) -> str:
        said = match[0].lower()
        if said == "one" and (has_digits or match.start()) and _PRONOUN.match(text, match.start()):
            return match[0]
        return str(_english_value(re.split(r"[\s-]+", said)))

    scales = {**_ENGLISH_SCALES, "dozen": 12}
    text = _SCALED.sub(lambda m: _times(m[1], scales[m[2].lower()]), text)
    text = _SPOKEN_POINT.sub(_decimal, text)
    text = _RUN.sub(digits, text)
    if ordinal := _ORDINAL.fullmatch(text.strip()):
        return str(1 + _ORDINALS.index(ordinal[1].lower()))
    text = _UNIT_AND_HALF.sub(lambda m: f"{m[1] if m[1].isdigit() else 1}.5 {m[2]}", text)
    text = _PART.sub(lambda m: f"{m[1] if m[1].isdigit() else 1}/{_PARTS[m[2].lower()]}", text)
    text = _LONE_HALF.sub("1/2", text)
    return _AND_PART.sub(r"\1 \2", text)


def _decimal(match: re.Match[str]) -> str:
    """Three point one four: digits after the point are read one by one."""
    whole, *places = (_said(part) for part in (match[1] or "0", *match[2].split()))
    return f"{whole}.{''.join(places)}"


def _said(number: str) -> str:
    if number.isdigit():
        return number
    return str(_english_value(re.split(r"[\s-]+", number.lower())))


def _english_value(words: list[str]) -> int:
    total = group = 0
    for word in words:
        if word == "hundred" or word == "dozen":
            group = (group or 1) * (100 if word == "hundred" else 12)
        elif word in _ENGLISH_SCALES:
            total += (group or 1) * _ENGLISH_SCALES[word]
            group = 0
        elif word != "and":
            group += _ENGLISH[word]
    return total + group


def _han(run: str) -> str:
    return _with_myriads(run, _HAN_DIGITS, _HAN_SCALES)


def _sino(run: str) -> str:
    return _with_myriads(run.replace(" ", ""), _SINO, _SINO_SCALES)


def _with_myriads(
    run: str, digits: "MappingProxyType[str, int]", scales: "MappingProxyType[str, int]"
) -> str:
    total, rest = 0, run
    for myriad in ("億", "亿", "억", "万", "萬", "만"):
        if myriad in rest:
            head, _, rest = rest.partition(myriad)
            total += (_positional(head, digits, scales) or 1) * _MYRIADS[myriad]
    return str(total + _positional(rest, digits, scales))


def _positional(
    run: str, digits: "MappingProxyType[str, int]", scales: "MappingProxyType[str, int]"
) -> int:
    """十二 and 三百五 by their scales; 二〇二六, without any, digit by digit."""
    if not any(letter in scales for letter in run):
        return int("".join(str(digits[letter]) for letter in run) or 0)
    total = digit = 0
    for letter in run:
        if letter in scales:
            total += (digit or 1) * scales[letter]
            digit = 0
        else:
            digit = digits[letter]
    return total + digit


def _korean(match: re.Match[str]) -> str:
    if not match[1] and not match[2]:
        return match[0]
    return str(_KOREAN_TENS.get(match[1] or "", 0) + _KOREAN.get(match[2] or "", 0))


def _myriad_and(match: re.Match[str]) -> str:
    scale = {**_HAN_SCALES, **_SINO_SCALES}.get(match[4], 1)
    return str(int(match[1]) * _MYRIADS[match[2]] + int(match[3]) * scale)


def _times_scale(match: re.Match[str]) -> str:
    scales = {**_HAN_SCALES, **_SINO_SCALES}
    rest = int(match[3]) * scales[match[4]] if match[3] else 0
    return str(int(match[1]) * scales[match[2]] + rest)


def _times(number: str, scale: int) -> str:
    """Exactly: 1.5 million is 1500000, not 1500000.0."""
    whole, _, part = number.partition(".")
    value = int(whole + part) * scale
    return (
        str(value // 10 ** len(part))
        if value % 10 ** len(part) == 0
        else f"{value / 10 ** len(part)}"
    )
