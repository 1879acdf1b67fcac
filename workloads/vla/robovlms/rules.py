"""What becomes of a field of a RoboVLMs config, and conversions that many fields share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Convert = Callable[[Any, Config], Any]
_MOST = 1e15  # no setting is larger


class RefusedField(Exception):
    """The reason why a value cannot be mapped."""


class KeptField(Exception):
    """The reason why a value of a mapped field is kept for reference only."""


@dataclass(frozen=True)
class Maps:
    """Maps to a setting; `convert` returns its value, or raises Refused or Kept.

    note: in the table.
    """

    setting: str
    convert: Convert = lambda value, _: value
    note: str = ""


@dataclass(frozen=True)
class Keeps:
    why: str


@dataclass(frozen=True)
class Refuses:
    """Refuses any value except `harmless` ones, which are kept."""

    why: str
    harmless: tuple[Any, ...] = (False, None)


Rule = Maps | Keeps | Refuses


def choice(choices: Mapping[Any, Any], why: str = "") -> Convert:
    """Conversion of one value for another; why: said of a value that is none of them."""

    def convert(value: Any, _: Config) -> Any:
        if isinstance(value, list | dict) or value not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise RefusedField(why or f"known are {known}")
        return choices[value]

    return convert


def section(config: Config, name: str) -> Config:
    """A section of a config, empty where it has none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def whole(value: Any, _: Config) -> int:
    """Conversion of a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RefusedField("expected a whole number of at least 1")
    return value


def number(value: Any, _: Config) -> float:
    """Conversion of a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        raise RefusedField("expected a finite number")
    return value
