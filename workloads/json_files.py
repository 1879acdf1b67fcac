"""JSON files read with errors that name their place: file, line and column."""

import json
from pathlib import Path
from typing import Any

from workloads import missing_files
from workloads.errors import UserError


def read_json(file: Path, unique: bool = False) -> dict[str, Any]:
    """Read a JSON object; raises UserError where the file is missing or holds something else.

    unique: a key that an object has twice is refused too; else the last counts.
    """
    return _object(_text(file), str(file), 1, unique)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line, without empty lines; raises UserError as `read_json`."""
    lines = enumerate(_text(file).split("\n"), start=1)
    return [_object(line, str(file), number) for number, line in lines if line.strip()]


def _text(file: Path) -> str:
    if missing_files.is_pointer(file):
        raise UserError(f"{file}: expected a JSON file, found {missing_files.WHAT_TO_DO}")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"expected {file}, found none; check that its folder is whole") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: expected JSON as UTF-8 text, found byte {error.object[error.start]:#04x} at "
            f"{error.start}; fix the file or copy it again"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None


def _object(text: str, file: str, first: int, unique: bool = False) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{file}: expected each key once, found {twice!r} twice; remove one")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once if unique else None)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}:{first + error.lineno - 1}:{error.colno}: expected JSON "
            f"({error.msg[:1].lower()}{error.msg[1:]}); fix the file or copy it again"
        ) from None
    except RecursionError:
        raise UserError(f"{file}:{first}: expected JSON with fewer levels") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{file}:{first}: expected a JSON object, found {type(value).__name__}; fix the file"
        )
    return value
