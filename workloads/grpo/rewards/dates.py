"""Dates and times of day in their usual forms: 2024-03-05 is March 5, 2024; 3:30 pm is 15:30."""

import re
from types import MappingProxyType

_NAMES = (
    "jan(?:uary)? feb(?:ruary)? mar(?:ch)? apr(?:il)? may june? july? aug(?:ust)? sept?(?:ember)? "
    "oct(?:ober)? nov(?:ember)? dec(?:ember)?"
)
_MONTHS = tuple(re.compile(name, re.IGNORECASE) for name in _NAMES.split())
_NAME = rf"(?P<name>{'|'.join(_NAMES.split())})\.?"
_DAY, _MONTH = r"(?P<day>\d{1,2})", r"(?P<month>\d{1,2})"
_NTH = rf"{_DAY}(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_ERAS = MappingProxyType({"昭和": 1925, "平成": 1988, "令和": 2018})
_EAST_YEAR = rf"(?P<era>{'|'.join(_ERAS)})?\s*(?P<year>\d{{1,4}})"
_LEAD = r"(?:(?!.*\bnot\b)[a-z ]*\b(?:is|was|be|on) )?(?:(?:[MTWFS][a-z]+day),? )?"
_TAIL = r"(?:\s*\(?[月火水木金土日](?:曜日?)?\)?)?(?:です|だ|입니다)?"
_DATES = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"{_LEAD}{_NAME} {_NTH}(?:,? {_YEAR})?",
        rf"{_LEAD}(?:the )?{_NTH}(?: of)? {_NAME}(?:,? {_YEAR})?",
        rf"{_LEAD}{_YEAR}(?P<sign>[-/.]){_MONTH}(?P=sign){_DAY}",
        rf"{_LEAD}{_MONTH}/{_DAY}/{_YEAR}",
        rf"(?:{_EAST_YEAR}\s*[年년]\s*)?{_MONTH}\s*[月월]\s*{_DAY}\s*[日일号號]{_TAIL}",
    )
)
_DENIED = re.compile(r".*\b(?:not|never|isn't|wasn't)\b", re.IGNORECASE)
_NUMERIC = re.compile(r"[\d\s/.-]+")
_TIME = re.compile(
    r"(?:(?:(?P<am>午前|上午|오전)|(?P<pm>午後|下午|오후))\s*)?(?P<hour>\d{1,2})"
    r"(?::(?P<minute>[0-5]\d)|\s*[時点點시])?\s*(?:(?P<am_behind>am)|(?P<pm_behind>pm))?"
    r"(?:です|だ|입니다)?"
)

Date = tuple[int | None, int, int]


def same_date_or_time(answer: str, truth: str) -> bool | None:
    """Whether two tidied texts name the same day, or time of day; None where they name neither.

    A year, or morning and afternoon, that the solution leaves out may be added; of times without
    either, which may be ratios, nothing is said.
    """
    wanted, said = _date(truth), _date(answer)
    if wanted and said:
        return said[1:] == wanted[1:] and wanted[0] in (None, said[0])
    if wanted and _DENIED.match(answer):
        return False
    if wanted and _NUMERIC.fullmatch(truth) and _NUMERIC.fullmatch(answer):
        return False  # 2024-03-05 is no difference, 2016
    return _same_time(answer, truth)


def _date(text: str) -> Date | None:
    """Year, month and day of a text that is a date."""
    match = next((found for form in _DATES if (found := form.fullmatch(text))), None)
    if match is None:
        return None
    parts = match.groupdict()
    day, year = int(parts["day"]), int(parts["year"]) if parts["year"] else None
    if parts.get("name"):
        month = next(n for n, name in enumerate(_MONTHS, 1) if name.fullmatch(parts["name"]))
    else:
        month = int(parts["month"])
    if month > 12 >= day and "/" in text:  # 25/12/2024
        month, day = day, month
    if year is not None and parts.get("era"):
        year += _ERAS[parts["era"]]
    return (year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _same_time(answer: str, truth: str) -> bool | None:
    ours, theirs = _TIME.fullmatch(answer), _TIME.fullmatch(truth)
    if not ours or not theirs or not (_half(ours) or _half(theirs)):
        return None
    if _half(ours) and _half(theirs):
        return _of_day(ours) == _of_day(theirs)
    marked, other = (ours, theirs) if _half(ours) else (theirs, ours)
    return _written(other) in (_of_day(marked), _written(marked))


def _half(time: re.Match[str]) -> str:
    """Am or pm; empty where a time says neither."""
    if time["am"] or time["am_behind"]:
        return "am"
    return "pm" if time["pm"] or time["pm_behind"] else ""


def _written(time: re.Match[str]) -> tuple[int, int]:
    return int(time["hour"]), int(time["minute"] or 0)


def _of_day(time: re.Match[str]) -> tuple[int, int]:
    """Hour from 0 to 23, and minute."""
    hour, minute = _written(time)
    if _half(time) == "pm" and hour < 12:
        return hour + 12, minute
    return (0 if _half(time) == "am" and hour == 12 else hour), minute
