"""Units of measure and money, so that 5 cm is not 5 m, and 60 min is 1 h."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from workloads.grpo.rewards import unit_table

Dimensions = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unit:
    """A unit as `factor` times base units, e.g. km/h is 5/18 of (m, 1), (s, -1)."""

    factor: Fraction
    dimensions: Dimensions
    name: str

    def __mul__(self, other: "Unit") -> "Unit":
        powers = dict(self.dimensions)
        for base, power in other.dimensions:
            powers[base] = powers.get(base, 0) + power
        kept = tuple(sorted((base, power) for base, power in powers.items() if power))
        return Unit(self.factor * other.factor, kept, f"{self.name} {other.name}")

    def raised(self, power: int) -> "Unit":
        """The unit to a small whole power."""
        powers = tuple((base, exponent * power) for base, exponent in self.dimensions)
        return Unit(self.factor**power, powers, f"{self.name}^{power}")


_CURRENCIES = ("usd", "eur", "gbp", "inr", "jpy", "cny", "krw")
# Words of counting without a unit: the same as no unit.
_COUNTED = (
    "個 个 箇 つ ヶ 개 items item objects object things thing pieces piece units unit pcs pc total "
    "times different distinct altogether overall in the of are there is a an these those all "
    "approximately exactly about around roughly answer result th st nd rd only just which"
)


_COUNTERS = frozenset(_COUNTED.split())
# Words that count what no unit measures, besides plurals; and words that only look like plurals.
_COUNTING = (
    "people person men women children sheep fish mice 人 本 匹 枚 冊 台 頭 羽 名 只 条 张 張 "
    "명 마리 권 대 그루 송이 자루"
)
_THINGS = frozenset(_COUNTING.split())
_UNCOUNTING = "plus minus always perhaps thus times versus afterwards besides"
_NO_PLURALS = frozenset(_UNCOUNTING.split())


def _entries() -> Iterator[tuple[str, Unit]]:
    prefixes: dict[str, tuple[Fraction, list[str]]] = {}
    for line in unit_table.PREFIXES.strip().splitlines():
        head, names = line.split(": ")
        sign, size = head.split()
        prefixes[sign] = Fraction(size), names.split()
    for line in unit_table.PREFIXED.strip().splitlines():
        head, symbols, usual, names = line.split("|")
        for sign, (factor, words) in prefixes.items():
            if sign in usual.split():
                yield from _named(head, [sign + symbol for symbol in symbols.split()], factor)
            joined = [
                word + name
                for word in words
                for name in names.split()
                if _script(word) == _script(name)
            ]
            yield from _named(head, joined, factor)
        yield from _named(head, [*symbols.split(), *names.split()])
    for line in unit_table.NAMED.strip().splitlines():
        head, names = line.split(": ")
        yield from _named(head, names.split())


def _named(
    head: str, names: Sequence[str], prefix: Fraction = Fraction(1)
) -> Iterator[tuple[str, Unit]]:
    """Names with their unit, words in the plural too; head: dimensions and factor."""
    *bases, factor = head.split()
    powers = (base.partition("^") for base in bases)
    dimensions = tuple(sorted((base, int(power or 1)) for base, _, power in powers))
    for name in names:
        unit = Unit(prefix * Fraction(factor), dimensions, name)
        yield name, unit
        if name.isascii() and name.isalpha() and len(name) > 3:
            yield f"{name}s", unit


def _script(word: str) -> str:
    """Latin, kana, hangul or Chinese: a prefix goes with words of its own."""
    return unicodedata.name(word[0]).partition(" ")[0]


_BY_NAME = MappingProxyType(dict(_entries()))
_BY_WORD = MappingProxyType(
    {
        name.casefold(): unit
        for name, unit in _BY_NAME.items()
        if len(name) > 2 or not name.isascii()
    }
)
# Characters of East Asia stand without spaces: the longest name that a run begins with.
_EAST = tuple(sorted((name for name in _BY_NAME if ord(name[0]) > 0x2E80), key=len, reverse=True))
_SQUARES = MappingProxyType(
    {"平方": 2, "立方": 3, "square": 2, "sq": 2, "cubic": 3, "cu": 3, "제곱": 2, "세제곱": 3}
)
_POWERED = re.compile(r"(?P<name>[A-Za-zµμ]+)(?P<power>[23])")
DEGREES, RADIANS = (("deg", 1),), (("rad", 1),)
_RATES = MappingProxyType(
    {"mph": ("mi", "h"), "kph": ("km", "h"), "kmh": ("km", "h")}
    | dict.fromkeys(("knot", "knots", "ノット"), ("nmi", "h"))
)
CURRENCY_SIGNS = "＄€£¥₩₹¢"
CURRENCY_CODES = tuple(
    name
    for name, unit in _BY_NAME.items()
    if unit.dimensions[0][0] in _CURRENCIES
    and name.isalpha()
    and name.isascii()
    and name[0].isupper()
)


def unit_of(word: str) -> Unit | None:
    """The unit called `word`: km, metres, cm2, $, 円."""
    if powered := _POWERED.fullmatch(word):
        found = unit_of(powered["name"])
        return found.raised(int(powered["power"])) if found else None
    if over := _RATES.get(word.casefold()):
        return _BY_NAME[over[0]] * _BY_NAME[over[1]].raised(-1)
    return _BY_NAME.get(word) or _BY_WORD.get(word.casefold())


def are_alike(one: Unit, other: Unit) -> bool:
    """Whether two units measure the same; ¥ is yen or yuan, degrees are angles or heat."""
    if "¥" in (one.name, other.name):
        return {one.dimensions, other.dimensions} <= {(("jpy", 1),), (("cny", 1),)}
    if one.dimensions == other.dimensions:
        return True
    kinds = {one.dimensions, other.dimensions}
    return DEGREES in kinds and bool(kinds & {RADIANS, (("°C", 1),), (("°F", 1),)})


def unit_at_start(run: str) -> tuple[Unit, str] | None:
    """The unit that a run of East Asian characters begins with, and the rest of the run."""
    for prefix in ("平方", "立方", "제곱", "세제곱"):
        if run.startswith(prefix) and (found := unit_at_start(run[len(prefix) :].lstrip())):
            return found[0].raised(_SQUARES[prefix]), found[1]
    for name in _EAST:
        if run.startswith(name):
            return _BY_NAME[name], run[len(name) :]
    return None


def power_of(word: str) -> int | None:
    """2 for square, 3 for cubic, else None."""
    return _SQUARES.get(word.casefold())


def counts_nothing(word: str) -> bool:
    """Whether a word after a number only counts, as `items` does."""
    return word.casefold() in _COUNTERS


def counts_things(word: str) -> bool:
    """Whether a word behind a number counts things, as in 5 bottles or 5人, which 5 cm are not."""
    word = word.casefold()
    is_plural = word.isascii() and word.isalpha() and len(word) > 3 and word[-1] == "s" != word[-2]
    return word in _THINGS or (is_plural and word not in _NO_PLURALS and not counts_nothing(word))
