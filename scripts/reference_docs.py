"""Write the reference pages: configuration, command line, models, commands that were run, lists of
decisions and benchmarks; the plans in the comments of recipes; a line in pages with commands.

python scripts/reference_docs.py            # write them
python scripts/reference_docs.py --check    # exit 1 where a page is not what would be written
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
from workloads.cli import parser
from workloads.commands.parsing import CommandParser, load_all
from workloads.config.merge import CONTRACT, PREFIX, SHORT_NAMES
from workloads.config.sections import Profile, Section

sys.path.insert(0, str(Path(__file__).resolve().parent))

import commands_page  # noqa: E402 (beside this script, which tests import as a package)
import models_page  # noqa: E402

DOCS = Path(__file__).resolve().parent.parent / "docs"
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


def configuration() -> str:
    """Every setting with its type, default and names."""
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
        known = inner_section(shared[name]) if name in shared else None
        if inner is not known:
            parts.append(_section(name, inner, level=3, known=known))
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


def _section(
    name: str, schema: type[Section], level: int = 2, known: type[Section] | None = None
) -> str:
    """A section; of one that extends another, `known`, only what it adds or has otherwise."""
    return f"{'#' * level} `{name}`\n\n{_table(schema, f'{name}.', known)}"


def _sections(schema: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for name, field in schema.model_fields.items():
        inner = inner_section(field)
        if inner is not None:
            yield name, inner


def inner_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, None for a setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _table(schema: type[Section], prefix: str, known: type[Section] | None = None) -> str:
    """A table of a section's settings, and below it those of the sections inside."""
    before = known.model_fields if known else {}
    settings = [
        name
        for name, field in schema.model_fields.items()
        if not inner_section(field) and (name not in before or _differs(field, before[name]))
    ]
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
        ordered = sorted(inner, key=lambda kind: kind is NoneType)
        return " or ".join(_words(item) for item in ordered)
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in inner)
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
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value) or '""'


_COMMANDS = f"""\
# Command line

Written by `{_COMMAND}` from the parsers: change those, not this page.
`tatara COMMAND --help` prints the same.

Exit codes: 0 done, 1 failed, 2 a mistake that you can fix, 3 stopped and saved, 75 worth retrying
(network, NCCL, a lost node), 130 and 143 stopped by Ctrl-C or SIGTERM before there was anything to
save. `tatara --print-completion bash` (or zsh, fish, tcsh) prints a script for the shell:

```
tatara --print-completion bash > ~/.local/share/bash-completion/completions/tatara
```"""


def command_line() -> str:
    """Every command with its arguments."""
    parts = [_COMMANDS, *_command(load_all(parser()))]
    return "\n\n".join(parts) + "\n"


def _command(command: CommandParser, level: int = 1) -> Iterator[str]:
    """A command's section, then those of the commands below it."""
    if level > 1:
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        yield f"{'#' * level} `{command.prog}`"
        yield f"{' '.join((command.description or '').split())}\n\n```\n{usage}\n```"
    rows = [_argument(action) for action in command._actions if action.help not in _UNLISTED]
    if rows := [row for row in rows if row]:
        yield "\n".join(["| argument | what it does |", "| --- | --- |", *rows])
    if command._commands is not None:
        for below in command._commands.choices.values():
            yield from _command(below, level + 1)


_UNLISTED = (argparse.SUPPRESS, None)


def _argument(action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return ""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    choices = ", ".join(map(str, action.choices)) if action.choices else ""
    value = choices or str(action.metavar or action.dest.upper())
    if not names:
        names = f"`{value}`"
    elif action.nargs != 0:
        names += f" `{value}`"
    help_text = (action.help or "") % {"default": action.default}
    return f"| {names} | {' '.join(help_text.split())} |".replace(" | | ", " \\| ")


def _index(folder: str, title: str, text: str) -> str:
    """A page that lists the pages of a folder by their titles."""
    rows = []
    for page in sorted((DOCS / folder).glob("*.md")):
        if page.name != "index.md":
            heading = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            rows.append(f"- [{heading}]({page.name})")
    return f"# {title}\n\n{text}\n\n" + "\n".join(rows) + "\n"


def decisions() -> str:
    """The list of decisions."""
    return _index("decisions", "Decisions", "What was decided, and why: one page each.")


def benchmarks() -> str:
    """The list of benchmarks."""
    text = (
        "One page a question, each beside a peer in one run; the scripts are in `bench/`. Ratios\n"
        "hold on other machines, absolute times do not."
    )
    return _index("benchmarks", "Benchmarks", text)


PAGES = {
    "configuration.md": configuration,
    "cli.md": command_line,
    "models.md": models_page.page,
    "commands.md": commands_page.page,
    "decisions/index.md": decisions,
    "benchmarks/index.md": benchmarks,
}


def main() -> int:
    """Write the pages, or with `--check` only compare them; returns the exit code."""
    arguments = argparse.ArgumentParser(prog=_COMMAND, description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 on a difference"
    )
    arguments.add_argument("--folder", type=Path, default=DOCS, help="where the pages lie")
    chosen = arguments.parse_args()
    differing = 0
    texts = {chosen.folder / name: render() for name, render in PAGES.items()}
    if chosen.folder == DOCS:
        texts |= models_page.recipes() | commands_page.pages()
    for page, text in texts.items():
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            continue
        if chosen.check:
            print(f"{page.name}: expected what the code says, found another text; run `{_COMMAND}`")
            differing += 1
        else:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
