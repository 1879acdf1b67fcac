"""Check fields and types of rendered files against lists of what each engine accepts.

A list holds names and types only; the engine's own server checks the rest (rules between fields,
names of GPUs, quotas). The files name their source, version and licence.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from workloads.errors import did_you_mean

_LISTS = Path(__file__).parent / "field_lists"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
    "any": (object,),
}


@cache
def known(engine: str) -> dict[str, Any]:
    """The list of an engine: `source`, `version`, `licence`, and `kinds` by name."""
    found: dict[str, Any] = json.loads((_LISTS / f"{engine}.json").read_text(encoding="utf-8"))
    return found


def wrong_fields(engine: str, kind: str, document: Any) -> list[str]:
    """One sentence for each field that is unknown, missing or of a wrong type."""
    return list(_wrong(known(engine)["kinds"][kind], document, kind))


def _wrong(rule: Any, value: Any, place: str) -> Iterator[str]:
    if isinstance(rule, list):
        # A bool is an int in Python, but not in a schema.
        fits = any(isinstance(value, _TYPES[name]) for name in rule)
        if not fits or (isinstance(value, bool) and not {"boolean", "any"} & set(rule)):
            yield f"{place}: expected {' or '.join(rule)}, found {value!r}"
    elif "any" in rule:
        tried = [list(_wrong(choice, value, place)) for choice in rule["any"]]
        if all(tried):
            # Of several possible choices: the one whose `kind` matches.
            yield from next((found for found in tried if "no such field" in found[0]), tried[-1])
    elif "enum" in rule:
        if value not in rule["enum"]:
            yield f"{place}: expected one of {', '.join(map(str, rule['enum']))}, found {value!r}"
    elif "items" in rule:
        if not isinstance(value, list):
            yield f"{place}: expected a list, found {value!r}"
            return
        for index, item in enumerate(value):
            yield from _wrong(rule["items"], item, f"{place}[{index}]")
    elif not isinstance(value, dict):
        yield f"{place}: expected a mapping, found {value!r}"
    elif "values" in rule:
        for name, item in value.items():
            yield from _wrong(rule["values"], item, f"{place}.{name}")
    else:
        for name in rule.get("required", ()):
            if name not in value:
                yield f"{place}: expected {name}, found none"
        for name, item in value.items():
            if name in rule["fields"]:
                yield from _wrong(rule["fields"][name], item, f"{place}.{name}")
            else:
                yield f"{place}.{name}: no such field; {did_you_mean(name, rule['fields'])}"
