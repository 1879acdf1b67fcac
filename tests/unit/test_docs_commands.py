"""Commands that the pages print: each is one that this command line, Makefile or folder has."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from workloads.cli import parse
from workloads.config.merge import resolve
from workloads.errors import UserError

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("cli.md", "configuration.md")
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]
BLOCK = re.compile(r"^ *```(?:bash|sh)?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?tatara [^`]+|make [^`]+|\./scripts/[^`]+)`")
SETTING = re.compile(r"[a-z_]+(\.\w+)+=")
STARTS = ("tatara", "make", "docker", "./scripts/", "scripts/", ".venv/bin/tatara", "bench/")


def lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines of a page's blocks, and commands within its sentences; and whether they are whole."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ "), True
    for command in INLINE.findall(BLOCK.sub("", text)):
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
        if command and command[0].startswith(STARTS):
            yield command
        command = []


def printed(page: Path) -> dict[tuple[str, ...], bool]:
    found: dict[tuple[str, ...], bool] = {}
    for line, whole in lines(page):
        for command in commands(line):
            found[tuple(command)] = found.get(tuple(command), False) or whole
    return found


def of_tatara(command: Sequence[str]) -> list[str] | None:
    """The words behind `tatara`; None for a form with words left out, or another command."""
    names = [Path(word).name for word in command]
    if "tatara" not in names or any("…" in word or word.startswith("[") for word in command):
        return None
    words = list(command[names.index("tatara") + 1 :])
    return None if "--help" in words or words[:1] == ["--print-completion"] else words


def problem(words: list[str], whole: bool) -> str | None:
    """What our own command line has against it; a name within a sentence may lack arguments."""
    try:
        found, rest = parse([{"N": "2"}.get(word, word) for word in words])
    except UserError as error:
        return None if not whole and "required" in str(error) else str(error)
    if rest and words[0] not in ("train", "submit", "rent", "check", "plan", "doctor"):
        return f"unknown: {rest}"
    settings = [word for word in rest if SETTING.match(word)]
    paths = [ROOT / "profiles" / place / f"{getattr(found, 'profile', '')}.yaml"
             for place in ("", "recipes")]  # fmt: skip
    path = next((path for path in paths if path.is_file()), None)
    if path is None or not settings:
        return None
    try:
        resolve(path, {}, settings)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_printed_command_is_one_of_ours(page: Path) -> None:
    commands = ((of_tatara(command), whole) for command, whole in printed(page).items())
    told = [(words, problem(words, whole)) for words, whole in commands if words is not None]
    assert [(" ".join(words), said) for words, said in told if said] == []


def test_there_are_commands_to_look_at() -> None:
    llm = [command for command in printed(ROOT / "docs" / "llm.md") if of_tatara(command)]
    assert len(llm) > 8
    assert problem(["train", "demo", "optim.lerning_rate=1"], True)
    assert problem(["chat", "RUN", "--adaptor", "x=y"], False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_and_scripts_that_a_page_prints_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in printed(page):
        target = next((word for word in command[1:] if not word.startswith("-")), "")
        if command[0] == "make" and re.fullmatch(r"[a-z0-9-]+", target):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        if command[0].startswith(("./", "scripts/")):
            assert (ROOT / command[0]).is_file(), command
