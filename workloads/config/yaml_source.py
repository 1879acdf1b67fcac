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


def mark_of(node: yaml.Node, file: str) -> Mark:
    """Where a node starts."""
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
        raise UserError(f"{name}: cannot be read as text: {error}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UserError(f"{place}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:1:1: expected a mapping of settings, found something else")
    _look_through(node, name, ())
    return node


def _look_through(node: yaml.Node, name: str, above: tuple[yaml.Node, ...]) -> None:
    """Refuse what a profile cannot mean: tags, keys that are no words, repeated keys, loops."""
    mark = mark_of(node, name)
    if any(node is one for one in above):
        raise UserError(f"{mark}: an alias stands inside what it names; write the value out")
    if not node.tag.startswith(_STANDARD):
        raise UserError(f"{mark}: the tag {node.tag} is not known here; write a plain value")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _look_through(item, name, (*above, node))
    if isinstance(node, yaml.MappingNode):
        _look_through_mapping(node, name, above)


def _look_through_mapping(node: yaml.MappingNode, name: str, above: tuple[yaml.Node, ...]) -> None:
    seen: dict[str, Mark] = {}
    for key, value in node.value:
        mark = mark_of(key, name)
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{mark}: expected the name of a setting, found a list or a mapping")
        if key.value in seen:
            raise UserError(f"{mark}: {key.value!r} is set twice, first at {seen[key.value]}")
        seen[key.value] = mark
        _look_through(value, name, (*above, node))


def value_of(node: yaml.Node) -> Any:
    """The plain Python value of a node."""
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


def parse_scalar(text: str) -> Any:
    """Read a value as a profile would, for values that come as text; text that is no YAML stays."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.YAMLError:
        return text
