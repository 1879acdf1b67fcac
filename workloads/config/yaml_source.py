"""YAML in which every value remembers its file, line and column."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workloads.errors import UserError


@dataclass(frozen=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 reads them: `on` and `off` are words, `1e-6` is a number."""


_STANDARD = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?|\.inf|\.nan)$"
)
_DEPTH = 32  # levels; no schema has more than four
_VALUES = 10_000
_LONGEST = 1 << 20  # characters of a text; the longest of our profiles has some thousand
_WIDE = {
    re.compile("[ -]*[A-Za-z_.]+ *："): "has a wide colon: write a colon and a blank",
    re.compile(" *\u3000"): "begins with a wide blank: write blanks",
    re.compile(" *\t"): "begins with a tab: write blanks",
}
_TAGS = {
    "scalar": {f"{_STANDARD}{kind}" for kind in ("str", "int", "float", "bool", "null")},
    "sequence": {f"{_STANDARD}seq"},
    "mapping": {f"{_STANDARD}map"},
}
_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
# Decimal only: 010 is no octal number to a person, and 1:30 is no number at all.
_INT = re.compile(r"^[-+]?(0|[1-9][0-9_]*)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def mark_of(node: yaml.Node | yaml.Event, file: str) -> Mark:
    """Where a node starts."""
    assert node.start_mark is not None  # both are made from a text
    return Mark(file, node.start_mark.line + 1, node.start_mark.column + 1)


def load_mapping(path: Path, name: str) -> yaml.MappingNode:
    """Parse a file whose top level is a mapping; `name` is the path that errors show.

    Raises UserError for a missing file, a syntax error or a repeated key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; check the path of the profile") from None
    except (OSError, UnicodeDecodeError) as error:
        fix = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{name}: cannot be read as text: {error}{fix}") from None
    node = _composed(text, name)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            f"{name}:1:1: expected a mapping of settings, found something else{wide_marks(text)}"
        )
    return node


def wide_marks(text: str) -> str:
    """The end of a message: a mark that YAML does not take for its own; '' where none is found.

    Input methods for East Asian text write them, and editors tabs.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, found in _WIDE.items():
            if pattern.match(line):
                return f"; line {number} {found}"
    return ""


def _composed(text: str, name: str) -> yaml.Node | None:
    """The nodes of a text, looked through; UserError with the place of what is wrong."""
    try:
        _check_size(text, name)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UserError(f"{place}: not valid YAML: {error.problem}{wide_marks(text)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if node is not None:
        _look_through(node, name, {})
    return node


def _check_size(text: str, name: str) -> None:
    """Composing is recursive and parsing is not, so what is too deep is refused before composing.

    So is what is too long: ten thousand values take a second.
    """
    if len(text) > _LONGEST:
        raise UserError(
            f"{name}:1:1: expected at most {_LONGEST:,} characters, found {len(text):,}; is this "
            "a profile? rows belong into a file that data.source names"
        )
    depth, values = 0, 0
    for event in yaml.parse(text, Loader=_Loader):
        values += isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)
        if values > _VALUES:
            raise UserError(
                f"{mark_of(event, name)}: expected at most {_VALUES:,} names and values, found "
                "more; is this a profile?"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEPTH:
                place = mark_of(event, name)
                raise UserError(
                    f"{place}: expected at most {_DEPTH} levels, found more; write it flatter"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _look_through(node: yaml.Node, name: str, sizes: dict[int, int]) -> int:
    """Refuse what a profile cannot mean: tags, keys that are no words, repeated keys, loops.

    Returns how many values a node stands for once its aliases are written out. A node is looked
    through once however many aliases name it; `sizes` holds what is known, 0 while it is open.
    """
    mark = mark_of(node, name)
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UserError(f"{mark}: an alias stands inside what it names; write the value out")
        return sizes[id(node)]
    sizes[id(node)] = 0
    kind = "scalar"
    if isinstance(node, yaml.SequenceNode):
        kind = "sequence"
        size = 1 + sum(_look_through(item, name, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        kind = "mapping"
        size = 1 + _look_through_mapping(node, name, sizes)
    else:
        size = 1
    if node.tag not in _TAGS[kind]:
        raise UserError(f"{mark}: the tag {node.tag} cannot stand here; write a plain value")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, mark)
    if size > _VALUES:
        raise UserError(
            f"{mark}: expected at most {_VALUES:,} values, found more once the aliases are "
            "written out; use fewer aliases"
        )
    sizes[id(node)] = size
    return size


def _look_through_mapping(node: yaml.MappingNode, name: str, sizes: dict[int, int]) -> int:
    seen: dict[str, Mark] = {}
    size = 0
    for key, value in node.value:
        mark = mark_of(key, name)
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{mark}: expected the name of a setting, found a list or a mapping")
        if key.value in seen:
            raise UserError(f"{mark}: {key.value!r} is set twice, first at {seen[key.value]}")
        seen[key.value] = mark
        if key.tag == f"{_STANDARD}merge":
            _check_merged(value, name)
        size += _look_through(value, name, sizes)
    return size


def _check_merged(node: yaml.Node, name: str) -> None:
    """What stands behind <<: a mapping, or a list of them."""
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(part, yaml.MappingNode):
            raise UserError(
                f"{mark_of(part, name)}: expected a mapping to merge with <<, found something else"
            )


def _check_text(text: str, place: Mark | str) -> None:
    """No file has a name with NUL, and half a character can be written into no file."""
    if re.search("[\0\ud800-\udfff]", text):
        raise UserError(f"{place}: expected text of whole characters in UTF-8, found {text!a}")


def _check_scalar(node: yaml.ScalarNode, mark: Mark) -> None:
    """Python refuses numbers of thousands of digits, and words under the tag of a number."""
    _check_text(node.value, mark)
    try:
        value_of(node)
    except (ValueError, KeyError, IndexError, yaml.YAMLError):
        kind = node.tag.removeprefix(_STANDARD)
        shown = node.value if len(node.value) < 40 else f"{node.value[:37]}..."
        raise UserError(f"{mark}: expected a value of type {kind}, found {shown!r}") from None


def value_of(node: yaml.Node) -> Any:
    """The plain Python value of a node that was looked through."""
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def text_of(node: yaml.Node) -> Any:
    """The value of a setting that is text: a plain scalar stays as it was written."""
    if isinstance(node, yaml.ScalarNode) and node.tag != f"{_STANDARD}null":
        return node.value
    return value_of(node)


def parse_scalar(text: str, source: str) -> Any:
    """Read a value as a profile would, for values that come as text; text that is no YAML stays.

    source: where the text comes from. Raises UserError for what no setting can be: values nested
    too deep, numbers of thousands of digits.
    """
    try:
        _check_size(text, source)
    except yaml.YAMLError:
        _check_text(text, source)
        return text
    node = _composed(text, source)
    return None if node is None else value_of(node)
