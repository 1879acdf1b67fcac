"""Names of models: corrections and suggestions for unknown ones."""

import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("models.json")


@cache
def model_file() -> dict[str, Any]:
    """models.json: `models`, ids with their facts; `renamed`, wrong name → id."""
    content: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return content


def renamed(name: str) -> str | None:
    """The model meant by a known wrong name; None for other names."""
    names = model_file()["renamed"]
    return next((new for old, new in names.items() if old.lower() == name.lower()), None)


def near_models(name: str) -> list[str]:
    """Known models with names close to an unknown one, the nearest first."""
    ids = [model for row in model_file()["models"] for model in row["ids"]]
    by_name = {model.lower(): model for model in ids}
    last = {known.rpartition("/")[2]: model for known, model in by_name.items()}
    repository = name.lower().rpartition("/")[2]
    close = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.75)
    close += difflib.get_close_matches(repository, last, n=3, cutoff=0.75)
    names = [(by_name | last)[found] for found in close]
    for word in difflib.get_close_matches(repository, _words(by_name), n=1, cutoff=0.8):
        names += [model for known, model in by_name.items() if word in known]
    return list(dict.fromkeys(names))[:3]


def _words(names: Iterable[str]) -> set[str]:
    """The parts of names, such as elyza or stablelm."""
    return {word for name in names for word in re.split(r"[^a-z]+", name) if len(word) > 3}
