"""Values that answers state, by name, relation, words and unit; and whether two answers' agree."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from workloads.grpo.rewards.expressions import Expression, same_value
from workloads.grpo.rewards.units import DEGREES, RADIANS, Unit, are_alike

# Names of a point's coordinates, in two dimensions and in three.
_COORDINATES = ("x", "y", "z")
_IN_DEGREES = Fraction(180 / math.pi)  # a radian


@dataclass(frozen=True)
class Quantity:
    """One value: its name (x) or words (red), how it stands to it (=, <, …), and its unit.

    counts: it is a number of things, such as 5 bottles, and no measure.
    """

    value: "Expression | Group"
    relation: str = "="
    name: str = ""
    words: frozenset[str] = frozenset()
    unit: Unit | None = None
    sound: bool = True
    counts: bool = False

    def __str__(self) -> str:
        said = self.name or " ".join(sorted(self.words))
        unit = f" {self.unit.name}" if self.unit else ""
        return f"{said} {self.relation} {_shown(self.value)}{unit}".removeprefix(" = ").strip()


@dataclass(frozen=True)
class Group:
    """Values in brackets: a point, an interval, a set."""

    opening: str
    closing: str
    parts: tuple[Quantity, ...]


def _shown(value: "Expression | Group") -> str:
    if isinstance(value, Group):
        return f"{value.opening}{', '.join(map(str, value.parts))}{value.closing}"
    known = value.values[0]
    if value.letters or known is None:
        return "an expression"
    if isinstance(known, Fraction):
        return str(known)
    number = complex(known)
    return f"{number.real:.6g}" if abs(number.imag) < 1e-12 else f"{number:.6g}"


def same_quantities(ours: Sequence[Quantity], theirs: Sequence[Quantity]) -> str:
    """Empty if an answer's quantities are the wanted ones, else the difference."""
    ours, theirs = _distinct(ours), _distinct(theirs)
    if unsound := [our for our in ours if not our.sound]:
        return f"an equation that is false, {unsound[0]}"
    ours, theirs = _as_relations(ours, theirs), _as_relations(theirs, ours)
    if len(ours) != len(theirs) and 1 in (len(ours), len(theirs)):
        ours, theirs = _opened(ours, theirs), _opened(theirs, ours)
    if len(ours) != len(theirs):
        return f"{_several(ours)}, where {_several(theirs)} was wanted"
    if _is_named(theirs) and not _is_named(ours):
        pairs = list(zip(ours, theirs, strict=True))
        return next((why for pair in pairs if (why := difference(*pair))), "")
    left, why = list(ours), ""
    for wanted in theirs:
        several = len(theirs) > 1
        match = next((item for item in left if not difference(item, wanted, several)), None)
        if match is None:
            return difference(left[0], wanted, several) if not several else f"nothing for {wanted}"
        left.remove(match)
    return why


def total_of(quantities: list[Quantity]) -> list[Quantity]:
    """The quantity that is the sum of all others, if there is one: 3 red, 5 blue, total 8."""
    amounts = [_amount(quantity) for quantity in quantities]
    known = [amount for amount in amounts if amount is not None]
    if len(known) < max(3, len(quantities)):
        return quantities
    whole = sum(known)
    found = [one for one, amount in zip(quantities, known, strict=True) if 2 * amount == whole]
    return [replace(found[0], words=frozenset())] if len(found) == 1 else quantities


def is_zero(quantities: Sequence[Quantity]) -> bool:
    """Whether a count of 0 is the only value."""
    return len(quantities) == 1 and _amount(quantities[0]) == 0


def _amount(quantity: Quantity) -> Fraction | None:
    """The exact value of a quantity; None for bounds, names, groups and letters."""
    value = quantity.value
    if quantity.relation != "=" or quantity.name or isinstance(value, Group) or value.letters:
        return None
    return known if isinstance(known := value.values[0], Fraction) else None


def _as_relations(group: list[Quantity], other: list[Quantity]) -> list[Quantity]:
    """An interval as relations, [-2, ∞) as ≥ -2, where the other side has relations."""
    interval = _bounds_of(group)
    if interval is None or not other or any(item.relation not in "<>≤≥" for item in other):
        return group
    low, high = interval.parts
    bounds = [
        replace(low, relation="≥" if interval.opening == "[" else ">"),
        replace(high, relation="≤" if interval.closing == "]" else "<"),
    ]
    return [bound for bound in bounds if not _is_endless(bound)]


def _bounds_of(quantities: Sequence[Quantity]) -> Group | None:
    """The only quantity, where it may be an interval."""
    value = quantities[0].value if len(quantities) == 1 else None
    is_interval = isinstance(value, Group) and len(value.parts) == 2 and value.opening in "(["
    return value if is_interval and isinstance(value, Group) else None


def _is_endless(quantity: Quantity) -> bool:
    return isinstance(quantity.value, Expression) and bool(quantity.value.endless)


def _opened(group: list[Quantity], other: list[Quantity]) -> list[Quantity]:
    """The parts of a point that the other side writes without brackets; their order counts."""
    value = group[0].value
    if isinstance(value, Group) and len(group) == 1 and value.opening in "{⦃":
        is_one_list = len({item.name for item in other}) == 1
        return list(value.parts) if is_one_list else group
    if (
        isinstance(value, Group)
        and len(group) == 1
        and value.opening == "("
        and value.closing == ")"
    ):
        names = _COORDINATES[: len(value.parts)]
        if tuple(sorted(item.name for item in other)) == names:
            return [replace(part, name=n) for part, n in zip(value.parts, names, strict=True)]
    if isinstance(value, Group) and {value.opening, value.closing} in ({"(", "]"}, {"[", ")"}):
        return group  # a half-open interval is no list
    if len(group) > 1 or not isinstance(value, Group) or any(item.name for item in other):
        # Where the other side was opened, the places name the values.
        is_opened = len(other) == 1 and isinstance(other[0].value, Group) and not group[0].name
        return (
            [replace(quantity, name=f"#{place}") for place, quantity in enumerate(group)]
            if is_opened
            else group
        )
    return [replace(part, name=f"#{place}") for place, part in enumerate(value.parts)]


def _is_named(quantities: Sequence[Quantity]) -> bool:
    """Whether names tell several values apart."""
    names = {
        (quantity.name, quantity.words)
        for quantity in quantities
        if quantity.name or quantity.words
    }
    return len(quantities) > 1 and len(names) == len(quantities)


def _several(quantities: Sequence[Quantity]) -> str:
    return f"{len(quantities)} values" if len(quantities) > 1 else str(quantities[0])


def _distinct(quantities: Sequence[Quantity]) -> list[Quantity]:
    kept: list[Quantity] = []
    for quantity in quantities:
        if not any(quantity == other or _identical(quantity, other) for other in kept):
            kept.append(quantity)
    return kept


def _identical(one: Quantity, other: Quantity) -> bool:
    key = (one.name, one.relation, one.words, one.unit, one.sound)
    return key == (
        other.name,
        other.relation,
        other.words,
        other.unit,
        other.sound,
    ) and same_amount(one, other)


def difference(ours: Quantity, wanted: Quantity, several: bool = False) -> str:
    """Empty if two quantities agree, else why not. A name or unit of one side alone is ignored."""
    if ours.relation.replace("≈", "=") != wanted.relation.replace("≈", "="):
        return f"{ours} where {wanted} was wanted"
    if ours.name and wanted.name and not _same_name(_name(ours.name), _name(wanted.name)):
        return f"a value of {ours.name}, not of {wanted.name}"
    if _is_sum(wanted.name) != _is_sum(ours.name) and (_is_sum(wanted.name)):
        return f"{ours} where an equation was wanted"
    ours, wanted = _of_money(ours, wanted), _of_money(wanted, ours)
    if ours.unit and wanted.unit and not are_alike(ours.unit, wanted.unit):
        return f"unit {ours.unit.name}, not {wanted.unit.name}"
    counts = (ours.counts and wanted.unit) or (wanted.counts and ours.unit)
    if counts or _other_words(ours, wanted, several):
        said, asked = (_kind(item) for item in (ours, wanted))
        return f"{said}, not {asked}"
    return "" if same_amount(ours, wanted) else f"{ours}, not {wanted}"


def _kind(quantity: Quantity) -> str:
    """What a value is of: its unit or words."""
    return quantity.unit.name if quantity.unit else " ".join(sorted(quantity.words))


def _name(name: str) -> str:
    return name.replace("∠", "").replace("|", "").replace("_", "").strip("()")


def _same_name(ours: str, wanted: str) -> bool:
    """The two roots x1 and x2 may both be called x."""
    return ours == wanted or (ours.isalpha() and ours == wanted.rstrip("0123456789"))


def _is_sum(name: str) -> bool:
    return bool(re.search(r"[-+*/^]", name))


def _other_words(ours: Quantity, wanted: Quantity, several: bool) -> bool:
    """Whether the words beside two values contradict; one side may have more words."""
    if not ours.words or not wanted.words:
        return False
    return not (ours.words <= wanted.words or wanted.words <= ours.words)


def same_amount(ours: Quantity, wanted: Quantity) -> bool:
    mine, theirs = ours.value, wanted.value
    if isinstance(mine, Group) and isinstance(theirs, Group):
        return _same_group(mine, theirs)
    if isinstance(mine, Group) or isinstance(theirs, Group):
        return False
    factor = Fraction(1)
    if ours.unit and wanted.unit:
        factor = ours.unit.factor / wanted.unit.factor * _turns(ours.unit, wanted.unit)
    elif _is_angle(ours, wanted) or _is_angle(wanted, ours):
        factor = _IN_DEGREES if wanted.unit else 1 / _IN_DEGREES
    if same_value(mine, theirs, factor):
        return True
    is_percentage_free = theirs.is_percentage and not mine.is_percentage and not ours.unit
    return is_percentage_free and _is_above_one(mine) and same_value(mine, theirs.parts[0])


def _of_money(quantity: Quantity, other: Quantity) -> Quantity:
    """Pounds are money where the other side is £."""
    is_pound = quantity.unit is not None and quantity.unit.name in ("pound", "pounds")
    is_beside_money = other.unit is not None and other.unit.name in ("£", "GBP")
    return replace(quantity, unit=other.unit) if is_pound and is_beside_money else quantity


def _is_angle(degrees: Quantity, radians: Quantity) -> bool:
    """45° beside π/4: a multiple of π without a unit is an angle, where the other side is one."""
    value = radians.value
    is_measured = degrees.unit is not None and degrees.unit.dimensions == DEGREES
    return is_measured and not radians.unit and isinstance(value, Expression) and value.has_pi


def _is_above_one(number: Expression) -> bool:
    """12.5 beside 12.5%; below one, 0.5 is a share itself, which 0.5% is not."""
    value = number.values[0]
    return isinstance(value, Fraction) and abs(value) > 1


def _turns(ours: Unit, wanted: Unit) -> Fraction:
    """What radians are in degrees, and back; 1 for all other units."""
    if RADIANS not in (ours.dimensions, wanted.dimensions) or ours.dimensions == wanted.dimensions:
        return Fraction(1)
    return _IN_DEGREES if ours.dimensions == RADIANS else 1 / _IN_DEGREES


def _same_group(ours: Group, wanted: Group) -> bool:
    if (ours.opening, ours.closing) != (wanted.opening, wanted.closing):
        return False
    if len(ours.parts) != len(wanted.parts):
        return False
    if ours.opening in "{⦃":
        return not same_quantities(ours.parts, wanted.parts)
    return not any(difference(*pair) for pair in zip(ours.parts, wanted.parts, strict=True))
