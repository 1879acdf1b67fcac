"""Profiles that would hang a reader or end in a traceback are refused with their place (O-A7)."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workloads.config.yaml_source import load_mapping, parse_scalar, value_of
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def bomb(levels: str = "abcdefghijkl") -> Iterator[str]:
    yield f"{levels[0]}: &{levels[0]} [{', '.join(['lol'] * 9)}]"
    for below, name in zip(levels, levels[1:], strict=False):
        yield f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]"


HOSTILE = {
    "bomb of lists": ("\n".join(bomb()), r":5:4: expected at most 10,000 values, found more"),
    "bomb of mappings": (
        "a: &a {x: 1, y: 1}\n"
        + "\n".join(f"b{n}: &b{n} {{x: *{p}, y: *{p}, z: *{p}}}" for n, p in
                    enumerate(["a", *(f"b{k}" for k in range(20))])),
        r":\d+:\d+: expected at most 10,000 values",
    ),
    "a loop": ("a: &a [1, *a]", r":1:4: an alias stands inside what it names"),
    "a loop through a mapping": ("a: &a {b: [*a]}", r":1:4: an alias stands inside"),
    "a tag that runs code": (
        'a: !!python/object/apply:os.system ["true"]', r":1:4: the tag .*system"
    ),
    "a tag of one's own": ("a: !thing 1", r":1:4: the tag !thing cannot stand here"),
    "a text tag on a list": ("a: !!str [b]", r":1:4: the tag .*str cannot stand here"),
    "a list tag on a text": ("a: !!seq b", r":1:4: the tag .*seq cannot stand here"),
    "a set": ("a: !!set {b}", r":1:4: the tag .*set cannot stand here"),
    "binary": ("a: !!binary aGk=", r":1:4: the tag .*binary cannot stand here"),
    "a timestamp tag": ("a: !!timestamp 2001-01-01", r":1:4: the tag .*timestamp"),
    "a number tag on a word": ('a: !!int "x"', r":1:4: expected a value of type int, found 'x'"),
    "a switch tag on a word": ("a: !!bool maybe", r":1:4: expected a value of type bool"),
    "a number tag on nothing": ("a: !!int ''", r":1:4: expected a value of type int, found ''"),
    "a merge of lists": ("a: {<<: [1]}", r":1:10: expected a mapping to merge with <<"),
    "a merge of a number": ("a: {<<: 3}", r":1:9: expected a mapping to merge with <<"),
    "NUL by its escape": ('a: "b\\0"', r":1:4: expected text of whole characters in UTF-8"),
    "half a character": ('a: "\\ud800"', r":1:4: expected text .* found '\\ud800'"),
    "many keys": (
        "\n".join(f"k{n}: 1" for n in range(50_000)),
        r":5001:1: expected at most 10,000 names and values",
    ),
    "one long text": ("a: " + "x" * 5_000_000, r":1:1: expected at most 1,048,576 characters"),
    "a character that is none": ("a: b\0", r": not valid YAML: unacceptable .* position 4$"),
    "deep lists": ("a: " + "[" * 20_000 + "]" * 20_000, r":1:35: expected at most 32 levels"),
    "deep mappings": ("a: " + "{b: " * 5_000 + "}" * 5_000, r":1:\d+: expected at most 32 levels"),
    "deep and open": ("a: " + "[" * 20_000, r":1:\d+: expected at most 32 levels"),
    "6000 digits": ("a: " + "9" * 6000, r":1:4: expected a value of type int, found '9999.*'"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "found"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_with_its_place(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(UserError, match=rf"one\.yaml{found}"):
        load_mapping(path, "one.yaml")
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("text", ["9" * 6000, "[" * 5000, "{a: " * 99 + "}" * 99])
def test_hostile_values_of_the_command_line_are_refused(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(UserError, match="^command line train.seed:1:"):
        parse_scalar(text, "command line train.seed")
    assert time.process_time() - begun < 2


def test_a_path_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(UserError, match="^command line data.source: expected text of whole"):
        parse_scalar(os.fsdecode(b"a\xff"), "command line data.source")


def test_aliases_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("a: &a {x: 1, y: [2, 3]}\nb: *a\nc: [*a, *a]\n")
    read = value_of(load_mapping(path, "one.yaml"))
    assert read["c"] == [read["a"], read["b"]] and read["a"] == {"x": 1, "y": [2, 3]}
