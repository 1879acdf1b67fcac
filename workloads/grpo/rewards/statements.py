"""Reads what an answer states: named values with units, points, intervals, relations.

"x=1, y=2"              two values with names
"3 red, 4 blue"         two values with words
"at least 7", "x ≥ 7"   a relation, which is no value
"±3"                    two values
"(1, 2)"                one value in two parts, whose order counts
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

from workloads.grpo.rewards.expressions import (
    Expression,
    Parser,
    Token,
    Unreadable,
    tokens_of,
)
from workloads.grpo.rewards.quantities import Group, Quantity, same_amount
from workloads.grpo.rewards.units import (
    CURRENCY_SIGNS,
    Unit,
    are_alike,
    counts_nothing,
    counts_things,
    power_of,
    unit_at_start,
    unit_of,
)

_RELATION = re.compile("[=<>≤≥≠≈]")
_TURNED = MappingProxyType({"<": ">", ">": "<", "≤": "≥", "≥": "≤"})
_SEPARATOR = re.compile(
    r"[,;、]|(?<![A-Za-z])(?:and|or|&)(?![A-Za-z])"
    r"|(?<=[\d個个つ개])\s*(?:と|または|あるいは|か|和|或|及|与|와|과|또는|그리고|이나|나)\s*(?=[-\d√xyn])"
)
_NAME = re.compile(r"[A-Za-zΑ-ω∠△][\w']*(?:\([A-Za-z, ]*\)|°)?|∠[A-Z]{1,3}|△[A-Z]{3}|\|[A-Z]{2}\|")
_FILLING = (
    "the a an is are was be it its this that there has have had i get we you value number final "
    "so then therefore thus hence answer result and or of in at to for with by equals equal about "
    "approximately around roughly exactly only just total count counts what which"
)
_FLUFF = frozenset(_FILLING.split())
_ARTICLES = frozenset(("a", "A", "I"))
# The same word in other languages.
_SAME_WORDS = MappingProxyType(dict.fromkeys(("人", "名", "명", "people", "persons"), "person"))
_EAST_FLUFF = re.compile(
    r"(?:です|でした|だ|である|になります|あります|います|ある|いる|となる|なり|입니다|이다|이에요|예요"
    r"|있습니다|있다|物体|东西|もの|もある|が|は|の|を|に|も|은|는|이|가|을|를|個|个|개|つ|数|です|정도|左右|ほど|くらい)+$"
)
_MOST_ITEMS = 40
# "1 hour and 30 minutes" is one value, as "1 h 30 min" is.
_AND_UNIT = re.compile(
    r"(\d\s*(?:hours?|h|hrs?|minutes?|min|days?|weeks?|years?|feet|foot|ft|pounds?|lbs?|dollars?"
    r"|km|kilometers?|kg|m|meters?)) and (\d+\s*[a-z]+)",
    re.IGNORECASE,
)
_FEET = re.compile(r"(\d+)\s*(?:ft|feet|foot|')\s*(\d+(?:\.\d+)?)\s*(?:in(?:ch(?:es)?)?\b|\"|'')")
_LEADING_VERB = re.compile(r"\s+(?:is|are|must be|has to be|should be)$|(?:は|이|가|는)$")


def read_quantities(text: str) -> list[Quantity]:
    """All quantities in a plain text; empty where it states no value."""
    found: list[Quantity] = []
    text = _FEET.sub(r"\1 feet \2 inches", _AND_UNIT.sub(r"\1 \2", text))
    for part in split_outside(text):
        found += _read_part(part)
        if len(found) > _MOST_ITEMS:
            return []
    return found


def split_outside(text: str) -> list[str]:
    """The text at its commas, semicolons, ands and ors, but not within brackets."""
    parts, depth, start, place = [], 0, 0, 0
    marks = {match.start(): match.end() for match in _SEPARATOR.finditer(text)}
    while place < len(text):
        depth += (text[place] in "([{⦃") - (text[place] in ")]}⦄")
        if place in marks and depth <= 0:
            parts.append(text[start:place])
            start = place = marks[place]
            continue
        place += 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _read_part(part: str) -> Iterator[Quantity]:
    """The quantities between two separators; ± makes two of one."""
    if "±" in part:
        for sign in "+-":
            yield from _read_part(part.replace("±", sign, 1).replace("±", sign))
        return
    signs = [match.group() for match in _RELATION.finditer(part)]
    if not signs:
        yield from _read_values(part)
        return
    sides = [side.strip() for side in _RELATION.split(part)]
    if set(signs) <= {"=", "≈"}:
        yield from _read_equation(sides, signs)
    else:
        yield from _read_relation(sides, signs)


def _read_equation(sides: Sequence[str], signs: Sequence[str]) -> Iterator[Quantity]:
    """`x = 14/2 = 7`: the last side, the name of the first; unsound where the sides contradict."""
    values = list(_read_values(sides[-1]))
    first = sides[0]
    if len(values) == 1 and len(sides) == 2 and not _is_name(first) and _is_name(sides[-1]):
        turned = list(_read_values(first))  # 7 = x
        if len(turned) == 1:
            first, values = sides[-1], turned
    if not values:
        return
    last = values[0]
    sound, name, words = True, "", last.words
    for side, sign in zip(sides[:-1], signs, strict=False):
        if side is sides[0] and (_is_name(first) or not side):
            continue
        stated = list(_read_values(side))
        closed = len(stated) == 1 and not stated[0].words and not _letters(stated[0])
        if closed and sign == "=":
            sound = sound and same_amount(stated[0], last)
    if _is_name(first):
        name = first.replace(" ", "")
    elif first:
        name, words = _left_side(first, words)
    yield replace(last, name=name, words=words, sound=sound and last.sound)
    yield from values[1:]


def _left_side(side: str, words: frozenset[str]) -> tuple[str, frozenset[str]]:
    """Words before an equals sign say what the value is of; an expression stands for itself."""
    stated = list(_read_values(side))
    if len(stated) == 1 and _letters(stated[0]) and not stated[0].words:
        return side.replace(" ", ""), words
    return "", words | (frozenset() if stated else _words(tokens_of(side)))


def _read_relation(sides: Sequence[str], signs: Sequence[str]) -> Iterator[Quantity]:
    """`1 < x < 3` as x > 1 and x < 3; the name comes to the left."""
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        left = _LEADING_VERB.sub("", left)
        if _is_name(right) and (not _is_name(left) or right < left):  # b > a is a < b
            left, right, sign = right, left, _TURNED.get(sign, sign)
        values = list(_read_values(right))
        if len(values) != 1:
            letters = _is_name(right)
            if not letters:
                return
        name, words = (
            (left.replace(" ", ""), frozenset[str]())
            if _is_name(left)
            else ("", _words(tokens_of(left)))
        )
        if not _is_name(left) and left and any(True for _ in _read_values(left)):
            name = left.replace(" ", "")
        for value in values[:1]:
            yield replace(value, relation=sign, name=name, words=value.words | words)


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and (len(text) <= 3 or not text.isalpha() or text[0] in "∠△")


def _letters(quantity: Quantity) -> bool:
    return isinstance(quantity.value, Expression) and bool(quantity.value.letters)


def _read_values(text: str) -> Iterator[Quantity]:
    """The values in a text without relations, each with the words and the unit around it."""
    tokens = tokens_of(text)
    parser, place = Parser(tokens), 0
    before: list[Token] = []
    found: list[Quantity] = []
    while place < len(tokens):
        token = tokens[place]
        group = _group_at(tokens, place) if token.text in ("(", "[", "{", "⦃") else None
        if group is not None:
            name = "".join(item.text for item in before[-1:] if token.glued)
            found.append(
                Quantity(group[0], name=name, words=_words(before if not name else before[:-1]))
            )
            before, place = [], group[1]
            continue
        try:
            if _names_a_group(tokens, place) or not _may_begin(
                tokens, place, bool(found or before)
            ):
                raise Unreadable
            value, end = parser.read(place)
        except Unreadable:
            place = _skip(tokens, place, before)
            continue
        if money := _money(before):
            before = before[:-1]
        unit, end = _unit_at(tokens, end)
        if found and not before and not unit and found[-1].unit and _is_unit_power(tokens, place):
            place = end
            continue
        unit = money or unit
        counts = not unit and _counts_things(tokens[end : end + 1])
        quantity = Quantity(value, unit=unit, words=_words(before), counts=counts)
        if found and not quantity.words and (whole := _together(found[-1], quantity)):
            found[-1] = whole
        else:
            found.append(quantity)
        before, place = [], end
    if found:
        found[-1] = replace(found[-1], words=found[-1].words | _words(before))
    yield from found


def _together(large: Quantity, small: Quantity) -> Quantity | None:
    """1 h 30 min as one value; None where two quantities are not parts of one."""
    if not (large.unit and small.unit and are_alike(large.unit, small.unit)):
        return None
    ratio = large.unit.factor / small.unit.factor
    if ratio <= 1 or isinstance(large.value, Group) or isinstance(small.value, Group):
        return None
    many, few = large.value.values[0], small.value.values[0]
    if not (isinstance(many, Fraction) and isinstance(few, Fraction) and 0 <= few < ratio):
        return None
    value, _ = Parser(tokens_of(f"({many})+({few / ratio})")).read(0)
    return replace(large, value=value)


def _skip(tokens: Sequence[Token], place: int, before: list[Token]) -> int:
    """Skip a token that belongs to no value; a bracket with words is a remark."""
    if tokens[place].text in "([{":
        depth = 0
        for end in range(place, len(tokens)):
            depth += (tokens[end].text in "([{") - (tokens[end].text in ")]}")
            if depth == 0:
                return end + 1
    before.append(tokens[place])
    return place + 1


def _is_unit_power(tokens: Sequence[Token], place: int) -> bool:
    return place > 0 and tokens[place - 1].text == "^"


def _may_begin(tokens: Sequence[Token], place: int, in_words: bool) -> bool:
    """Whether a value may begin here: a letter among words is a word, USD and No are none."""
    token = tokens[place]
    if token.kind != "word":
        return token.text not in (":", "*", "/", "+", "!", "^", ")")
    if token.text in _ARTICLES and place + 1 < len(tokens) and not tokens[place + 1].glued:
        following = tokens[place + 1]
        return following.text in "+-*/^" and following.kind == "sign"
    if unit_of(token.text) and place + 1 < len(tokens) and tokens[place + 1].kind == "number":
        return False
    return not (in_words and len(token.text) > 1 and token.text.isupper() and unit_of(token.text))


def _names_a_group(tokens: Sequence[Token], place: int) -> bool:
    """Whether a letter is the name of the point behind it: P(1, 2)."""
    end = place + 1
    is_named = tokens[place].kind == "word" and end < len(tokens) and tokens[end].glued
    return is_named and tokens[end].text in "([" and _group_at(tokens, end) is not None


def _money(before: Sequence[Token]) -> Unit | None:
    """The currency right before a number."""
    if not before:
        return None
    sign = before[-1].text
    unit = unit_of(sign) if sign in CURRENCY_SIGNS or sign.isupper() or sign == "Rs" else None
    return (
        unit
        if unit and unit.dimensions[0][0].islower() and len(unit.dimensions[0][0]) == 3
        else None
    )


def _group_at(tokens: Sequence[Token], place: int) -> tuple[Group, int] | None:
    """A bracket with commas in it, and where it ends; None for one that only groups."""
    depth, commas, end = 0, False, place
    for end in range(place, len(tokens)):
        text = tokens[end].text
        depth += (text in "([{⦃") - (text in ")]}⦄")
        commas = commas or (depth == 1 and text in (",", ";"))
        if depth == 0:
            break
    if depth or not commas:
        return None
    inside = "".join(("" if token.glued else " ") + token.text for token in tokens[place + 1 : end])
    parts = [read_quantities(part) for part in split_outside(inside)]
    if any(len(part) != 1 for part in parts) or len(parts) < 2:
        return None
    return Group(tokens[place].text, tokens[end].text, tuple(part[0] for part in parts)), end + 1


def _unit_at(tokens: Sequence[Token], place: int) -> tuple[Unit | None, int]:
    """The unit behind a value: cm^2, square metres, km/h, kilometres per hour, 平方米."""
    unit, place = _one_unit(tokens, place)
    divides = False  # J/kg K is J/(kg K)
    while unit is not None and place < len(tokens):
        joint = tokens[place].text
        step = 1 if joint in ("/", "per", "*", "·", "毎", "a", "an") else 0
        other, end = _one_unit(tokens, place + step)
        if other is None or (not step and tokens[place].kind == "east"):
            break
        divides = joint not in ("*", "·") if step else divides
        unit = unit * (other.raised(-1) if divides else other)
        place = end
    return unit, place


def _one_unit(tokens: Sequence[Token], place: int) -> tuple[Unit | None, int]:
    if place >= len(tokens):
        return None, place
    token = tokens[place]
    if token.kind == "east":
        found = unit_at_start(token.text)
        return (found[0] if found else None), place + 1 if found else place
    if (power := power_of(token.text)) is not None:
        unit, end = _one_unit(tokens, place + 1)
        return (unit.raised(power) if unit else None), end if unit else place
    unit = unit_of(token.text)
    if unit is None:
        return None, place
    end = place + 1
    if _text(tokens, end) == "^":
        power_text = "".join(_text(tokens, end + step) for step in range(1, 4)).strip("(")
        digits = re.match(r"-?\d", power_text)
        if digits:
            width = 2 if digits[0].startswith("-") else 1
            bracket = _text(tokens, end + 1) == "("
            return unit.raised(int(digits[0])), end + 1 + width + 2 * bracket
    if _text(tokens, end) in ("squared", "cubed"):
        return unit.raised(2 if tokens[end].text == "squared" else 3), end + 1
    return unit, end


def _text(tokens: Sequence[Token], place: int) -> str:
    return tokens[place].text if place < len(tokens) else ""


def _counts_things(tokens: Sequence[Token]) -> bool:
    return any(counts_things(_EAST_FLUFF.sub("", token.text)) for token in tokens)


def _words(tokens: Sequence[Token]) -> frozenset[str]:
    """The words that say what a value is of, in one form: without plurals and filling."""
    words = set()
    for token in tokens:
        text = token.text.casefold()
        if token.kind == "east":
            text = _EAST_FLUFF.sub("", text)
        elif token.kind != "word" or text in _FLUFF or counts_nothing(text):
            continue
        elif len(text) > 3 and text.endswith("s") and not text.endswith("ss"):
            text = text.removesuffix("s")
        if text:
            words.add(_SAME_WORDS.get(text, text))
    return frozenset(words)
