"""JSON files of data sets, with errors that name their place."""

import json
from pathlib import Path
from typing import Any

from workloads.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises UserError where the file is missing or holds something else."""
    return _object(_text(file), str(file))


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """One JSON object a line; empty lines are left out."""
    lines = enumerate(_text(file).split("\n"), start=1)
    return [_object(line, f"{file}:{number}") for number, line in lines if line.strip()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: expected a JSON file, found {error}; copy it anew") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: expected JSON, found {error}; mend or copy it anew") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object, found {type(value).__name__}; mend it")
    return value
