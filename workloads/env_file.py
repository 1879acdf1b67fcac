"""The one reader of `.env`, for scripts, doctor and package; the standard library alone.

Compose reads the same file by rules of its own. A line is taken where python-dotenv and Compose
agree on it, and refused with its number where they do not: so scripts, doctor and container always
see the same value.

    python3 -m workloads.env_file NAME…    prints NAME='value' for a shell; the environment wins
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import TataraError, UserError

_SKIPPED = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?:\r?\n|\Z)")
_NAME = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?!export[ \t]*=)([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=([ \t]*)"
)
_SINGLE = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)
_DOUBLE = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL)
_REST = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?:\r?\n|\Z)")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_PLAIN = re.compile(r"[\w./:@%+,=-]*", re.ASCII)
# Compose replaces these by another variable's value; python-dotenv knows only ${…}.
_FILLED_IN = re.compile(r"\$[A-Za-z_{($]")


@dataclass(frozen=True)
class Assignment:
    """One NAME=value, and its span in the text, with the line end."""

    name: str
    value: str
    start: int
    end: int


def read(path: Path = Path(".env")) -> dict[str, str]:
    """The values of a file, empty where there is none; a repeated name has its last value.

    Raises UserError with the number of a line that readers of .env take differently, and for a
    file that cannot be read or is not in UTF-8.
    """
    return {found.name: found.value for found in assignments(_text(path), path)}


def _text(path: Path) -> str:
    # A folder of this name is a virtual environment of somebody's.
    if path.is_dir() or not os.path.lexists(path):
        return ""
    if not path.is_file():
        raise _no_file(path)
    try:
        # Some editors write a byte order mark; python-dotenv, Compose and this reader skip it.
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a readable file in UTF-8, found: {error}; save it as UTF-8, or fix "
            "its permissions"
        ) from None


def _no_file(path: Path) -> UserError:
    found = "a folder" if path.is_dir() else "a pipe, a socket or a device"
    if path.is_symlink():
        found = f"a link to {path.readlink()}"
    return UserError(f"{path}: expected a file of NAME=value lines, found {found}; move it away")


def assignments(text: str, path: Path) -> Iterator[Assignment]:
    """The assignments of a text in order; UserError as `read`. Values never stand in a message."""
    at = 0
    while at < len(text):
        if skipped := _SKIPPED.match(text, at):
            at = skipped.end()
            continue
        place = f"{path}:{text.count(chr(10), 0, at) + 1}"
        start, named = at, _NAME.match(text, at)
        if named is None:
            raise UserError(
                f"{place}: expected NAME=value with a name of letters, digits and _, found "
                f"{_before_value(text, at)}; write NAME=value, or put # in front"
            )
        try:
            value, at = _value(text, named.end(), bool(named[2]))
        except ValueError as error:
            raise UserError(f"{place}: {named[1]}: expected {error}") from None
        yield Assignment(named[1], value, start, at)


def _before_value(text: str, at: int) -> str:
    """The start of a line up to where a value, which may be secret, could begin.

    As Python writes it, so that a blank without width is seen. A part of a key in several lines,
    which may end in =, is no name.
    """
    line = text[at:].partition("\n")[0]
    named = re.match(r"[^=:+/]{0,40}[=:]", line)
    return repr(named[0].strip(" \t")) if named else "a line without NAME="


def _value(text: str, at: int, after_space: bool) -> tuple[str, int]:
    """The value that begins there and where its line ends; ValueError says what is expected."""
    quote = text[at : at + 1]
    if quote not in ("'", '"'):
        line, end, _ = text[at:].partition("\n")
        value = _unquoted(line.removesuffix("\r") if end else line, after_space)
        return value, at + len(line) + len(end)
    quoted = (_SINGLE if quote == "'" else _DOUBLE).match(text, at)
    if quoted is None:
        raise ValueError(f"a closing {quote}, found none; add it, or take the first one away")
    if "\r" in quoted[1]:
        raise ValueError("the value in one line, found a line end of Windows in it; write \\r\\n")
    rest = _REST.match(text, quoted.end())
    if rest is None:
        raise ValueError(
            f"nothing but a comment after the closing {quote}, found more; quote all of the value"
        )
    return (_single if quote == "'" else _double)(quoted[1]), rest.end()


def _unquoted(line: str, after_space: bool) -> str:
    if _FILLED_IN.search(line):
        raise ValueError(_DOLLAR)
    if after_space and line.startswith("#"):
        raise ValueError("a value before #, found a space; write NAME='' or put # in front of NAME")
    if line[:1].isspace() or re.search(r"[^\S ]#|[\x00-\x08\x0b-\x1f]", line):
        raise ValueError(
            "no other white space or control character than a space, found one; put the value in "
            "single quotes"
        )
    return line.partition(" #")[0].rstrip()


_DOLLAR = (
    "a value without $NAME or ${…}, which each reader of .env fills in differently, found one; "
    "write the value itself, or put it in single quotes if the $ belongs to it"
)


def _single(text: str) -> str:
    if "\\\\" in text or "${" in text:
        raise ValueError(
            "no \\\\ and no ${ in single quotes, which readers of .env take differently, found "
            "one; use double quotes with \\\\, or another value"
        )
    return text.replace("\\'", "'")


def _double(text: str) -> str:
    if _FILLED_IN.search(text) or "\\$" in text:
        raise ValueError(_DOLLAR)
    if unknown := re.search(r"(?<!\\)(?:\\\\)*(\\['0])", text):
        raise ValueError(
            f'none but the escapes \\\\ \\" \\n \\r \\t in double quotes, found {unknown[1]}; '
            "write \\\\ for a backslash"
        )
    return re.sub(r'\\([\\"abfnrtv])', lambda found: _ESCAPES.get(found[1], found[1]), text)


def line(name: str, value: str) -> str:
    """NAME=value, quoted as needed; UserError for a value that readers would take differently."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    ways = (f"'{value}'", f'"{escaped}"')
    for way in (value,) if _PLAIN.fullmatch(value) else ways:
        written = f"{name}={way}"
        try:
            if [found.value for found in assignments(written, Path(name))] == [value]:
                return written
        except UserError:
            continue
    raise UserError(
        f"{name}: expected a value that every reader of .env takes alike, found one with "
        "quotes and $ or \\ together; choose another"
    )


def keep(path: Path, values: Mapping[str, str]) -> None:
    """Set values in a file, for its owner alone: in the last line's place, new ones at the end.

    Everything else stands as it was; UserError as `read`.
    """
    if path.is_dir():
        raise _no_file(path)
    text = _text(path)
    there = list(assignments(text, path))
    last = {found.name: found for found in there}
    parts, at = [], 0
    for found in there:
        if found.name not in values:
            continue
        parts.append(text[at : found.start])
        if found is last[found.name]:
            parts.append(line(found.name, values[found.name]) + "\n")
        at = found.end
    parts.append(text[at:])
    whole = "".join(parts)
    if whole and not whole.endswith("\n"):
        whole += "\n"
    whole += "".join(line(name, values[name]) + "\n" for name in values if name not in last)
    partial = path.resolve().with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(whole, encoding="utf-8")
        partial.replace(path.resolve())
    finally:
        partial.unlink(missing_ok=True)  # on a full disk; it holds what may be secret


def main(names: list[str]) -> int:
    """Print the values of names for a shell to evaluate; an empty one where nothing is set."""
    try:
        values = read()
    except TataraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name in names:
        print(f"{name}={shlex.quote(os.environ.get(name) or values.get(name, ''))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
