"""Style and script of the pages: files beside this one."""

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).with_name("static")


@cache
def asset(name: str) -> str:
    """The text of a file in `static`, such as `style.css`."""
    return (_FOLDER / name).read_text(encoding="utf-8")
