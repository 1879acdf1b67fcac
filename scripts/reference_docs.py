"""Write docs/configuration.md from the schema: every setting with its type, default and names.

python scripts/reference_docs.py            # write it
python scripts/reference_docs.py --check    # exit 1 where the file is not what would be written
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from workloads.catalogue import WORKLOADS
from workloads.config.merge import CONTRACT, PREFIX, SHORT_NAMES
from workloads.config.sections import Profile, Section

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_COMMAND = "python scripts/reference_docs.py"
_HEADS = ("setting", "type", "default", "short names", "what it does")

_INTRODUCTION = f"""\
# Configuration

Written by `{_COMMAND}` from the schema in
`workloads/config/sections.py` and the `config.py` of each workload: change those, not this page.

A profile, `profiles/<name>.yaml`, names a workload and sets what differs from the defaults below.
A value is taken from the last of these that has one:

1. the default on this page;
2. the profile that this one `extends`, a path beside it, then the profile itself;
3. the environment, `.env` included: a short name that the profile lists under `honours`, then the
   exact name, `{PREFIX}SECTION__SETTING` (`{PREFIX}OPTIM__LEARNING_RATE=1e-5`);
4. the command line: `optim.learning_rate=1e-5`, `--optim.learning_rate 1e-5`, or a short name as a
   flag, `--learning_rate 1e-5`; a flag without a value means true.

Every run keeps the resulting values and where each came from in its `config.json`. A name that is
not on this page is refused, with its place and the nearest one that is. An empty variable counts as
not set. `honours` limits the environment only: a flag on the command line is always meant. `name`
is the profile's file name where the profile does not set it."""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _short_names()]
    parts.append("## Every workload\n\n" + _table(Profile, ""))
    parts += [_section(name, inner) for name, inner in _sections(Profile)]
    for workload, schema in _workloads():
        parts.append(f"## Workload `{workload}`\n\nBesides the settings of every workload.")
        parts += _own(schema)
    return "\n\n".join(parts) + "\n"


def _workloads() -> Iterator[tuple[str, type[Profile]]]:
    """The workloads that this version has, with their schemas."""
    for name_of_workload, entry in WORKLOADS.items():
        module, _, name = entry.schema.partition(":")
        if importlib.util.find_spec(module) is not None:
            yield name_of_workload, importlib.import_module(module).__dict__[name]


def _own(schema: type[Profile]) -> list[str]:
    """Tables of what a workload adds, or has in another form than every workload."""
    shared = Profile.model_fields
    settings = [
        name
        for name, field in schema.model_fields.items()
        if inner_section(field) is None and (name not in shared or _differs(field, shared[name]))
    ]
    parts = [_rows(schema, "", settings)] if settings else []
    for name, inner in _sections(schema):
        if name not in shared or inner is not inner_section(shared[name]):
            parts.append(_section(name, inner, level=3))
    return parts


def _differs(one: FieldInfo, other: FieldInfo) -> bool:
    return (one.annotation, one.default) != (other.annotation, other.default)


def _short_names() -> str:
    lines = [
        "## Short names",
        "In the environment in capitals, where the profile lists them under `honours`; on the "
        "command line as flags (`--batch_size 16`).",
    ]
    rows = [[f"`{name}`", f"`{setting}`"] for name, setting in sorted(SHORT_NAMES.items())]
    lines.append(_markdown(("name", "setting"), rows))
    lines.append("The launch contract, which every profile honours:")
    rows = [[f"`{name}`", f"`{setting}`"] for name, setting in sorted(CONTRACT.items())]
    lines.append(_markdown(("name", "setting"), rows))
    return "\n\n".join(lines)


def _section(name: str, schema: type[Section], level: int = 2) -> str:
    return f"{'#' * level} `{name}`\n\n{_table(schema, f'{name}.')}"


def _sections(schema: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for name, field in schema.model_fields.items():
        inner = inner_section(field)
        if inner is not None:
            yield name, inner


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, None for a setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _table(schema: type[Section], prefix: str) -> str:
    """A table of a section's settings, and below it those of the sections inside."""
    settings = [name for name, field in schema.model_fields.items() if not inner_section(field)]
    parts = [_rows(schema, prefix, settings)]
    if prefix:
        parts += [_table(inner, f"{prefix}{name}.") for name, inner in _sections(schema)]
    return "\n\n".join(parts)


def _rows(schema: type[Section], prefix: str, names: list[str]) -> str:
    short: dict[str, list[str]] = {}
    for known, setting in (SHORT_NAMES | CONTRACT).items():
        short.setdefault(setting, []).append(f"`{known}`")
    rows = []
    for name in names:
        field = schema.model_fields[name]
        full = f"{prefix}{name}"
        cells = [f"`{full}`", type_of(field), default_of(field), ", ".join(short.get(full, []))]
        rows.append([*cells, (field.description or "").replace("<", "&lt;")])
    return _markdown(_HEADS, rows)


def _markdown(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def type_of(field: FieldInfo) -> str:
    """What a setting takes, in words."""
    return _words(field.annotation) + _bounds(field)


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, UnionType):
        # None comes last, as in "a whole number or none".
        ordered = sorted(inner, key=lambda one: one is NoneType)
        return " or ".join(_words(one) for one in ordered)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is tuple:
        return f"list: {_words(inner[0])}"
    if origin is dict:
        return f"mapping: {_words(inner[0])} to {_words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, Section):
        return f"{{{', '.join(kind.model_fields)}}}"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return names.get(kind, "none" if kind is NoneType else str(kind))


def _bounds(field: FieldInfo) -> str:
    found = [text for text in map(_bound, field.metadata) if text]
    return f", {' and '.join(found)}" if found else ""


def _bound(constraint: Any) -> str:
    match constraint:
        case annotated_types.Ge(ge=value):
            return f"≥ {value}"
        case annotated_types.Gt(gt=value):
            return f"> {value}"
        case annotated_types.Le(le=value):
            return f"≤ {value}"
        case annotated_types.Lt(lt=value):
            return f"< {value}"
    return ""


def default_of(field: FieldInfo) -> str:
    """A setting's default as a profile would spell it."""
    if field.is_required():
        return "**required**"
    return f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        mantissa, exponent, power = f"{value:g}".partition("e")
        return f"{mantissa}e{int(power)}" if exponent else mantissa
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    return str(value) or '""'


def main() -> int:
    """Write the page, or with `--check` only compare it; returns the exit code."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 on a difference"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write or compare")
    arguments = parser.parse_args()
    page, text = arguments.page, render()
    if not arguments.check:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    print(f"{page.name}: expected what the schema says, found another text; run `{_COMMAND}`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
