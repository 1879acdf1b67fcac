"""The page that says of each command in the documentation whether a test runs it.

A test says so itself: `@pytest.mark.runs("make train")`. What was typed by hand stands with day,
machine and what was seen in docs/typed-by-hand.yaml.
"""

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from workloads.cli import parse
from workloads.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = ROOT / "docs" / "typed-by-hand.yaml"
GENERATED = ("cli.md", "configuration.md", "commands.md")
_GENERATED_TOO = ("models.md",)  # with commands, written by another script
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]
_FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *``` *$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "bash", "sh")
_INLINE = re.compile(r"`((?:\.venv/bin/)?tatara [^`]+|make [^`]+|\./scripts/[^`]+)`")
_STARTS = ("tatara", "make", "docker", "./scripts/", "scripts/", ".venv/bin/tatara", "bench/", "cp")
# A shipped profile for GPUs is trained or served; those for a CPU end in -tiny or -script.
_FOR_GPUS = re.compile(
    r"(make train-(4090|vla|h100)"
    r"|(scripts/start_training\.sh|tatara train|docker compose --profile) "
    r"(profiles/)?(llm|vla|grpo|ja|policy)\b"
    r"|scripts/docker/vla_finetune\.sh train)"
    r"(?!.*(-tiny|-script|build)\b)"
)
_LINE = re.compile(r"^\*Commands on this page: .*\n", re.MULTILINE)
_FEWEST = 3  # commands of a page that says how many of them were run

_INTRODUCTION = """\
# Commands, and whether they were run

Written by `python scripts/reference_docs.py`. Every command that a page prints is listed here once
for each page, with the test that runs it, or the day and the machine on which it was typed by hand,
and what was seen where that is not all that the page says.
A test may add settings that keep the run small, and gives values of its own where a word in capital
letters (`RUN`) or the name of a file stands for the reader's. Commands with a dash were not run as
they are printed: a test holds them against the command line's own parser, the Makefile and the
files of `scripts/`, and their parts are tested elsewhere. `never on a GPU` stands beside a command
that is for GPUs and that nobody has run on one yet. [Hardware](hardware.md) lists what has
run on which machine."""


def lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines of a page's blocks, and commands within its sentences; and whether they are whole."""
    text = page.read_text(encoding="utf-8")
    for language, block in _FENCE.findall(text):
        if language.strip() in _SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                yield line.strip().removeprefix("$ "), True
    for command in _INLINE.findall(_FENCE.sub("", text)):
        yield " ".join(command.split()), False


def commands(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, without what is set before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    command: list[str] = []
    try:
        words = [*lexer, ";"]
    except ValueError:  # a sentence with an apostrophe
        return
    for word in words:
        if not set(word) <= set("|&;<>"):
            command.append(word)
            continue
        while command and re.match(r"[A-Z_]+=", command[0]):
            command = command[1:]
        if command and command[0].startswith(_STARTS) and not command[0].endswith("/"):
            yield command
        command = []


def printed(page: Path) -> dict[tuple[str, ...], bool]:
    """A page's commands, and whether one stands in a block, as a whole."""
    found: dict[tuple[str, ...], bool] = {}
    for line, whole in lines(page):
        for command in commands(line):
            found[tuple(command)] = found.get(tuple(command), False) or whole
    return found


def normal(command: str) -> str:
    """A command as it is compared: without the folder that its program is named with."""
    return command.removeprefix(".venv/bin/").removeprefix("./")


@cache
def texts(page: Path) -> list[str]:
    """A page's commands as one types them, each once; names of commands in sentences are none."""
    found = (command for command, whole in printed(page).items() if whole or _is_complete(command))
    return list(dict.fromkeys(normal(shlex.join(command)) for command in found))


def _is_complete(command: tuple[str, ...]) -> bool:
    """Whether no argument is missing."""
    if normal(command[0]) != "tatara" or "--help" in command:
        return True
    try:
        parse(list(command[1:]))
    except UserError as error:
        return "required" not in str(error)
    return True


@cache
def by_tests() -> Mapping[str, str]:
    """Command → the test that says of itself that it runs it."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "mark.runs(" not in text:
            continue
        tree = ast.parse(text)
        for test in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.runs":
                    for command in _arguments(mark, tree):
                        found[normal(command)] = f"{file.relative_to(ROOT)}::{test.name}"
    return found


def _arguments(mark: ast.Call, tree: ast.Module) -> list[str]:
    """What a mark is given: texts, or `*NAME`, a list of texts above."""
    constants = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    found: list[str] = []
    for argument in mark.args:
        if isinstance(argument, ast.Starred):
            found += ast.literal_eval(constants[ast.unparse(argument.value)])
        else:
            found.append(ast.literal_eval(argument))
    return found


def by_hand() -> Mapping[str, str]:
    """Command → each day and machine on which it was typed, and what was seen."""
    found: dict[str, str] = {}
    for entry in _entries():
        seen = f": {entry['seen']}" if "seen" in entry else ""
        said = f"by hand, {entry['day']}, {entry['machine']}{seen}"
        for command in map(normal, entry["commands"]):
            found[command] = f"{found[command]}; {said}" if command in found else said
    return found


def on_gpus() -> frozenset[str]:
    """The commands that were typed on a machine with GPUs."""
    entries = [entry for entry in _entries() if entry.get("gpus")]
    return frozenset(normal(command) for entry in entries for command in entry["commands"])


@cache
def _entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))
    return entries


def never_on_a_gpu(command: str) -> bool:
    """Whether a command is for GPUs and was not run on one."""
    return _FOR_GPUS.match(command) is not None and command not in on_gpus()


def never_run(source: Path) -> list[str]:
    """A page's commands that neither a test nor a person has run."""
    return [text for text in texts(source) if text not in by_tests() and text not in by_hand()]


def page() -> str:
    """The page: a table for each page that prints commands."""
    parts = [_INTRODUCTION]
    for source in PAGES:
        if not (found := texts(source)):
            continue
        rows = ["| command | run by |", "| --- | --- |", *map(_row, found)]
        parts += [f"## {_name(source)}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _row(command: str) -> str:
    how = f"`{by_tests()[command]}`" if command in by_tests() else by_hand().get(command, "–")
    if never_on_a_gpu(command):
        how += "; never on a GPU"
    return f"| `{command.replace('|', chr(92) + '|')}` | {how} |"


def _name(source: Path) -> str:
    return source.stem.lower()


def pages() -> dict[Path, str]:
    """Each page with its line that says how many of its commands were run, and how."""
    return {
        source: _with_line(source)
        for source in PAGES
        if source.name not in _GENERATED_TOO and len(texts(source)) >= _FEWEST
    }


def _with_line(source: Path) -> str:
    found = texts(source)
    tested = sum(command in by_tests() for command in found)
    left = len(never_run(source))
    for_gpus = sum(never_on_a_gpu(command) for command in found)
    folder = "docs/" if source.name == "README.md" else ""
    line = (
        f"*Commands on this page: {tested} run by tests, {len(found) - tested - left} typed by "
        f"hand, {left} only checked against the command line "
        f"([which]({folder}commands.md#{_name(source)}))"
    )
    line += f"; {for_gpus} for GPUs, never run on one.*\n" if for_gpus else ".*\n"
    text = source.read_text(encoding="utf-8")
    if _LINE.search(text):
        return _LINE.sub(lambda _: line, text, count=1)
    return f"{text.rstrip()}\n\n{line}"
