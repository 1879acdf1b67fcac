"""Expressions as people type them, read once and compared by value: 2√3, (x+1)^2, 1 1/2, sin x.

A grammar by recursive descent, in time linear in the text. Two expressions are equal where they
have the same value at the same drawn values of their letters; rational numbers are exact.

    sum     := product (("+" | "-") product)*
    product := signed (("*" | "/" | ":") signed | power)*      power beside power multiplies
    signed  := "-" signed | power
    power   := atom ("!" | "%" | "^" signed)*
    atom    := number | number number "/" number | letter | "(" sum ")" | "√" atom | name atom
"""

import cmath
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from types import MappingProxyType

from workloads.grpo.rewards.units import CURRENCY_CODES, unit_of

Value = Fraction | complex
Letters = Callable[[str], complex]

_POINTS = 2  # at which expressions with letters are compared
_CLOSE = 1e-9
_MOST_BITS = 20_000  # of an exact number; beyond it nothing is compared
_MOST_EXPONENT = 4096
_DEEPEST = 40  # brackets within brackets
_LONGEST_NUMBER = 400  # digits
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d+)?|(?<![A-Za-z])\.\d+)(?:[eE][+-]?\d{1,3}(?![\w.]))?)"
    r"|(?P<word>[A-Za-zµμ]+(?:(?<=[kmMG])Ω|_\w+|'+|\d+(?!\.\d)\w*)?|[Α-Ωα-ορ-ωΩ](?:_\w+)?)"
    r"|(?P<east>[\u3040-\u30fe\u3400-\u9fff\uac00-\ud7a3々ー]+)"
    r"|(?P<sign>°[CF](?![A-Za-z])|\S)"
)
_FUNCTIONS: Mapping[str, Callable[[complex], complex]] = MappingProxyType(
    {
        "sin": cmath.sin,
        "cos": cmath.cos,
        "tan": cmath.tan,
        "cot": lambda x: 1 / cmath.tan(x),
        "sec": lambda x: 1 / cmath.cos(x),
        "csc": lambda x: 1 / cmath.sin(x),
        "arcsin": cmath.asin,
        "arccos": cmath.acos,
        "arctan": cmath.atan,
        "ln": cmath.log,
        "log": cmath.log10,
        "lg": cmath.log10,
        "exp": cmath.exp,
        "sqrt": cmath.sqrt,
    }
)
_CONSTANTS = MappingProxyType({"π": math.pi, "pi": math.pi, "e": math.e, "i": 1j, "∞": math.inf})
# Letters that people write side by side as a product, such as ab, xy, pqr.
_NEIGHBOURS = ("abcd", "mnk", "pqr", "rst", "uvw", "xyz", "axby", "mc")
_CLOSING = MappingProxyType({"(": ")", "[": "]", "{": "}"})


@dataclass(frozen=True)
class Token:
    """A piece of text; `glued`: no space between it and the one before."""

    kind: str
    text: str
    glued: bool


def tokens_of(text: str) -> list[Token]:
    """The numbers, words, runs of East Asian characters and signs of a text."""
    found: list[Token] = []
    end = 0
    for match in _TOKEN.finditer(text):
        kind, glued = str(match.lastgroup), match.start() == end and end > 0
        end = match.end()
        found += list(_split(Token(kind, match[0], glued), found[-1] if found else None))
    return found


def _split(token: Token, before: Token | None) -> Iterator[Token]:
    """Letters that are multiplied (2ab, xy), and what is written onto a number (USD7, sqrt7)."""
    if token.kind != "word":
        yield token
        return
    lead = re.match(r"[A-Za-z]+", token.text)
    name = lead[0] if lead else token.text
    rest = token.text[len(name) :]
    if rest[:1].isdigit() and (name in (*CURRENCY_CODES, "sqrt", "No", "pi")):
        yield Token("word", name, token.glued)
        yield Token("number", rest, True)
    elif not rest and len(name) > 1 and _is_product(token, before):
        for place, letter in enumerate(name):
            yield Token("word", letter, token.glued or place > 0)
    else:
        yield token


def _is_product(token: Token, before: Token | None) -> bool:
    name = token.text
    if name in _FUNCTIONS or name in _CONSTANTS or unit_of(name) or len(name) > 4:
        return False
    if name.startswith("pi") and len(name) <= 4:
        return False
    after_number = token.glued and before is not None and before.kind == "number"
    if after_number and name.islower() and name not in ("st", "nd", "rd", "th", "pcs"):
        return len(name) <= 3
    return any(set(name) <= set(letters) for letters in _NEIGHBOURS) and len(set(name)) == len(name)


class Unreadable(Exception):
    """Raised where no expression begins."""


@dataclass(frozen=True)
class Expression:
    """A tree: an operator or name with its parts; numbers and letters are leaves."""

    kind: str
    parts: "tuple[Expression, ...]" = ()
    leaf: Fraction | str | None = None

    @cached_property
    def letters(self) -> frozenset[str]:
        """The letters whose values are not known."""
        own = {str(self.leaf)} if self.kind == "letter" else set()
        return frozenset(own.union(*(part.letters for part in self.parts)))

    @property
    def is_percentage(self) -> bool:
        """Whether the value is a percentage such as 12%, not 12% of something."""
        return self.kind == "%"

    @cached_property
    def has_pi(self) -> bool:
        """Whether it contains π."""
        return self.leaf == "π" or any(part.has_pi for part in self.parts)

    @property
    def endless(self) -> int:
        """1 for ∞, -1 for -∞, 0 for all else."""
        if self.leaf == "∞":
            return 1
        is_signed = self.kind == "-" and self.parts[0].leaf == 0
        return -self.parts[1].endless if is_signed else 0

    def value(self, letters: Letters) -> Value | None:
        """The value at given values of the letters; None where it cannot be computed."""
        try:
            value = _evaluate(self, letters)
        except (ArithmeticError, ValueError, RecursionError):
            return None
        if isinstance(value, Fraction) or cmath.isfinite(value):
            return value
        return None

    @cached_property
    def values(self) -> tuple[Value | None, ...]:
        """The values at which two expressions are compared; one where there are no letters."""
        points = _POINTS if self.letters else 1
        return tuple(self.value(_drawn(point)) for point in range(points))


def _drawn(point: int) -> Letters:
    """The same letter has the same value in every process and every expression."""

    def value(letter: str) -> complex:
        digest = sha256(f"{letter} {point}".encode()).digest()
        return complex(1 + int.from_bytes(digest[:6], "big") / 2**48)

    return value


def same_value(left: Expression, right: Expression, factor: Fraction = Fraction(1)) -> bool:
    """Whether `left` times `factor` is `right`, whatever their letters stand for."""
    if left.endless or right.endless:
        return left.endless == right.endless
    ours, theirs = left.values, right.values
    if len(ours) != len(theirs):
        points = [_drawn(point) for point in range(_POINTS)]
        ours = tuple(left.value(point) for point in points)
        theirs = tuple(right.value(point) for point in points)
    return all(_close(a, b, factor) for a, b in zip(ours, theirs, strict=True))


def difference_of(left: str, right: str) -> Expression | None:
    """The difference of two sides of an equation; None unless both are expressions."""
    sides = []
    for text in (left, right):
        tokens = tokens_of(text)
        try:
            side, end = Parser(tokens).read(0)
        except Unreadable:
            return None
        if end != len(tokens):
            return None
        sides.append(side)
    return Expression("-", tuple(sides))


def are_proportional(ours: Expression, theirs: Expression) -> bool:
    """Whether two expressions in the same several letters differ by a factor only."""
    if len(theirs.letters) < 2 or ours.letters != theirs.letters:
        return False
    pairs = list(zip(ours.values, theirs.values, strict=True))
    if any(not value for pair in pairs for value in pair):
        return False
    ratios = [complex(our or 0) / complex(their or 1) for our, their in pairs]
    return cmath.isclose(*ratios, rel_tol=_CLOSE)


def _close(left: Value | None, right: Value | None, factor: Fraction) -> bool:
    if left is None or right is None:
        return False
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left * factor == right
    try:
        return cmath.isclose(complex(left) * float(factor), complex(right), rel_tol=_CLOSE)
    except OverflowError:
        return False


def negated(expression: Expression) -> Expression:
    """Minus the expression."""
    return Expression("-", (Expression("number", leaf=Fraction(0)), expression))


def _evaluate(tree: Expression, letters: Letters) -> Value:
    if tree.kind == "number":
        assert isinstance(tree.leaf, Fraction)
        return tree.leaf
    if tree.kind == "letter":
        return letters(str(tree.leaf))
    if tree.kind == "constant":
        return complex(_CONSTANTS[str(tree.leaf)])
    parts = [_evaluate(part, letters) for part in tree.parts]
    if tree.kind in _FUNCTIONS:
        return _FUNCTIONS[tree.kind](complex(parts[0]))
    if tree.kind == "log_":
        return cmath.log(complex(parts[1])) / cmath.log(complex(parts[0]))
    if tree.kind == "!":
        return _factorial(parts[0])
    if tree.kind == "%":
        return _operate("/", parts[0], Fraction(100))
    return _operate(tree.kind, parts[0], parts[1])


def _operate(sign: str, left: Value, right: Value) -> Value:
    if sign == "^":
        return _raise(left, right)
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = complex(left), complex(right)
    if sign == "+":
        result: Value = left + right
    elif sign == "-":
        result = left - right
    else:
        result = left * right if sign == "*" else left / right
    return _within(result)


def _raise(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and abs(exponent) > _MOST_EXPONENT:
        raise ValueError("too large an exponent")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > _MOST_BITS:
            raise ValueError("too many digits")
        return Fraction(base**exponent.numerator)
    is_odd_root = isinstance(exponent, Fraction) and exponent.denominator % 2
    if is_odd_root and isinstance(base, Fraction) and base < 0:  # the real one
        size = float(-base) ** float(exponent.real)
        return complex(-size if Fraction(exponent.real).numerator % 2 else size)
    return complex(base) ** complex(exponent)


def _within(value: Value) -> Value:
    parts = (value.numerator, value.denominator) if isinstance(value, Fraction) else ()
    if any(part.bit_length() > _MOST_BITS for part in parts):
        raise ValueError("too many digits")
    return value


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 1000:
        raise ValueError("no factorial")
    return Fraction(math.factorial(value.numerator))


class Parser:
    """Reads expressions from tokens, each as far as possible; an unknown word ends it."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._depth = 0

    def read(self, place: int) -> tuple[Expression, int]:
        """The longest expression that begins at `place`, and where it ends; else Unreadable."""
        self._depth = 0
        return self._sum(place)

    def _at(self, place: int) -> Token:
        return self._tokens[place] if place < len(self._tokens) else Token("end", "", False)

    def _sum(self, place: int) -> tuple[Expression, int]:
        left, place = self._product(place)
        while (sign := self._at(place).text) in ("+", "-"):
            try:
                right, place = self._product(place + 1)
            except Unreadable:
                break
            left = Expression(sign, (left, right))
        return left, place

    def _product(self, place: int) -> tuple[Expression, int]:
        left, place = self._signed(place)
        while True:
            sign = self._at(place).text
            try:
                if sign in ("*", "/", ":"):
                    right, place = self._signed(place + 1)
                    left = Expression("*" if sign == "*" else "/", (left, right))
                elif self._multiplies(place):
                    right, place = self._power(place)
                    left = Expression("*", (left, right))
                else:
                    return left, place
            except Unreadable:
                return left, place

    def _multiplies(self, place: int) -> bool:
        """Whether what stands here without a sign is one more factor: 2x, 3√2, 2(x+1), not 7 2."""
        token = self._at(place)
        if token.kind == "number":
            return False
        if token.text in _CLOSING:
            return token.glued or self._at(place - 1).text in _CLOSING.values()
        if token.kind != "word":
            return token.text in ("√", "π", "∞")
        return not self._is_unit(place) and self._is_letter(token)

    def _is_letter(self, token: Token) -> bool:
        name = re.split(r"[_'\d]", token.text)[0]
        if token.text in _FUNCTIONS or token.text in _CONSTANTS or name == "log":
            return True
        return len(name) == 1 or (name.isupper() and len(name) <= 3)

    def _is_unit(self, place: int) -> bool:
        """Whether a letter behind a number is its unit: 5 m, 9.8 m/s^2, but not 2m + 1."""
        token = self._at(place)
        if unit_of(token.text) is None or (place and self._at(place - 1).text in ("+", "*", "/")):
            return False
        end = place + 1
        while self._at(end).text in ("^", "/", "*"):
            following = self._at(end + 1)
            if self._at(end).text != "^" and unit_of(following.text) is None:
                return False
            end += 2
        after = self._at(end)
        if after.kind == "number":  # 1 h 30 min
            return unit_of(self._at(end + 1).text) is not None
        return after.text not in ("+", "-", "=", *_CLOSING)

    def _signed(self, place: int) -> tuple[Expression, int]:
        sign = self._at(place).text
        if sign in ("-", "+"):
            self._deeper()
            part, place = self._signed(place + 1)
            self._depth -= 1
            return (negated(part) if sign == "-" else part), place
        return self._power(place)

    def _power(self, place: int) -> tuple[Expression, int]:
        left, place = self._atom(place)
        while (sign := self._at(place).text) in ("!", "%", "^"):
            if sign == "^":
                try:
                    right, place = self._signed(place + 1)
                except Unreadable:
                    break
                left = Expression("^", (left, right))
            elif sign == "%":
                left, place = Expression("%", (left,)), place + 1
            else:
                left, place = Expression("!", (left,)), place + 1
        return left, place

    def _atom(self, place: int) -> tuple[Expression, int]:
        token = self._at(place)
        if token.kind == "number":
            return self._number(place)
        if token.text in _CLOSING:
            return self._bracketed(place)
        if token.text == "√":
            self._deeper()
            part, place = self._atom(place + 1)
            self._depth -= 1
            return Expression("sqrt", (part,)), place
        if token.text in _CONSTANTS:
            return Expression("constant", leaf=token.text), place + 1
        if token.text in _FUNCTIONS or token.text.startswith("log_"):
            return self._function(place)
        if token.kind == "word" and self._is_letter(token):
            return Expression("letter", leaf=token.text), place + 1
        raise Unreadable

    def _number(self, place: int) -> tuple[Expression, int]:
        """A number, or a mixed one: 1 1/2."""
        whole = self._leaf(place)
        top, stroke, bottom = (self._at(place + step) for step in (1, 2, 3))
        kinds = (top.kind, stroke.text, bottom.kind)
        if kinds == ("number", "/", "number") and not self._at(place + 1).glued:
            numbers = [self._leaf(place + 1).leaf, self._leaf(place + 3).leaf]
            upper, lower = (Fraction(str(number)) for number in numbers)
            if upper < lower and all(part.denominator == 1 for part in (upper, lower)):
                total = Fraction(str(whole.leaf)) + upper / lower
                return Expression("number", leaf=total), place + 4
        return whole, place + 1

    def _leaf(self, place: int) -> Expression:
        text = self._at(place).text
        if len(text) > _LONGEST_NUMBER:
            raise Unreadable
        return Expression("number", leaf=Fraction(text))

    def _bracketed(self, place: int) -> tuple[Expression, int]:
        closing = _CLOSING[self._at(place).text]
        self._deeper()
        inside, end = self._sum(place + 1)
        self._depth -= 1
        if self._at(end).text != closing:
            raise Unreadable
        return inside, end + 1

    def _function(self, place: int) -> tuple[Expression, int]:
        name = self._at(place).text
        self._deeper()
        end, power = place + 1, None
        if self._at(end).text == "^":
            power, end = self._atom(end + 1)
        inside, end = self._atom(end) if self._at(end).text in _CLOSING else self._bare(end)
        self._depth -= 1
        if name.startswith("log_"):
            base = Parser(tokens_of(name[4:])).read(0)[0]
            made = Expression("log_", (base, inside))
        else:
            made = Expression(name, (inside,))
        return (Expression("^", (made, power)) if power else made), end

    def _bare(self, place: int) -> tuple[Expression, int]:
        """What a function without brackets takes: sin 2x, not sin x + 1."""
        left, place = self._power(place)
        while self._multiplies(place) and self._at(place).text not in _FUNCTIONS:
            right, place = self._power(place)
            left = Expression("*", (left, right))
        return left, place

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable
