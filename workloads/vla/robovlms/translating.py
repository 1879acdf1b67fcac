"""Translates a RoboVLMs config into our settings, with a row for each of its fields."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workloads.errors import did_you_mean
from workloads.vla.robovlms.config import OVERRIDE, Inherited
from workloads.vla.robovlms.fields import DEFAULTS, NEEDED, RULES
from workloads.vla.robovlms.rules import Keeps, KeptField, Maps, RefusedField, Refuses, Rule

_SEVERAL = "several datasets: RoboVLMs trains on the first batch only; name one"


@dataclass(frozen=True)
class Row:
    """Result for one field: mapped to `text`, or kept or refused with it as reason."""

    field: str
    value: Any
    outcome: Literal["mapped", "kept", "refused"]
    text: str

    @property
    def shown(self) -> str:
        """The value as JSON, on one line for every reader."""
        plain = json.dumps(self.value, ensure_ascii=False)
        return plain if plain.isprintable() else json.dumps(self.value)

    @property
    def name(self) -> str:
        """The field, on one line for every reader."""
        return self.field if self.field.isprintable() else json.dumps(self.field)


def translate(found: Inherited) -> tuple[dict[str, Any], list[Row]]:
    """The settings by section, and a row for each field in the config's order."""
    config = found.config
    settings: dict[str, Any] = {}
    rows = [_row(config, field, value, settings) for field, value in _leaves(config)]
    there = {row.field for row in rows}
    for field, value in DEFAULTS.items():
        # A section has no defaults where all of it is missing: RoboVLMs cannot run without it.
        if field not in there and field.rpartition(".")[0] in {"", *config}:
            row = _row(config, field, value, settings)
            text = f"{row.text} (left out: RoboVLMs' default)"
            rows.append(Row(row.field, row.value, row.outcome, text))
    for field in NEEDED:
        if field not in there:
            rule = RULES[field]
            assert isinstance(rule, Maps)
            text = f"left out, so that a profile's default of {rule.setting} counts"
            rows.append(Row(field, None, "kept", text))
    # Its trainings on CALVIN do not vary colours; a profile would by default.
    settings.setdefault("data", {}).setdefault("augmentation", {"enabled": False})
    for section in found.overridden:
        why = "the section replaces the parent's; training there merges the two all the same"
        rows.append(Row(f"{section}.__override__", True, "kept", why))
    return settings, rows


def _leaves(section: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _row(config: Mapping[str, Any], field: str, value: Any, settings: dict[str, Any]) -> Row:
    rule = _rule(field)
    if rule is None:
        return Row(field, value, "refused", _unknown(field, value))
    if isinstance(rule, Keeps):
        return Row(field, value, "kept", rule.why)
    if isinstance(rule, Maps):
        return _mapped(config, rule, field, value, settings)
    # Here 0 is not False, nor 1 True.
    if any(value == other and type(value) is type(other) for other in rule.harmless):
        return Row(field, value, "kept", "as it is here")
    return Row(field, value, "refused", rule.why)


def _mapped(
    config: Mapping[str, Any], rule: Maps, field: str, value: Any, settings: dict[str, Any]
) -> Row:
    try:
        setting = rule.convert(value, config)
    except RefusedField as error:
        return Row(field, value, "refused", str(error))
    except KeptField as error:
        return Row(field, value, "kept", str(error))
    *sections, name = rule.setting.split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = setting
    said = f"{rule.setting}: {json.dumps(setting)}"
    return Row(field, value, "mapped", f"{said} ({rule.note})" if rule.note else said)


def _rule(field: str) -> Rule | None:
    if field.rpartition(".")[2] == OVERRIDE:  # sections that were replaced have lost theirs
        return Refuses("nothing is replaced here; remove it")
    section = field.partition(".")[0]
    of_section = RULES.get(f"{section}.") or RULES.get(section)
    # A whole section of which nothing is mapped needs one rule.
    return RULES.get(field) or (None if isinstance(of_section, Maps) else of_section)


def _unknown(field: str, value: Any) -> str:
    if any(known.startswith(f"{field}.") for known in RULES):
        return _SEVERAL if isinstance(value, list) else "expected a section with fields"
    section, dot, _ = field.rpartition(".")
    siblings = [name for name in RULES if name.rpartition(".")[0] == section and name[-1] != "."]
    if not siblings:
        return "no section of RoboVLMs that is known here"
    return f"no field of RoboVLMs that is known here; {did_you_mean(field, siblings)}"
