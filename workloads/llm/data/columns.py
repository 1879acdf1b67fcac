"""Columns of rows: their format, our names for them, and unused ones.

A kept row holds our column names of one format, so that its keys say which one it is. Structures
that a table can only store as JSON text are parsed, and numbers where texts are expected become
texts.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workloads.data.rows import described
from workloads.llm.config import FORMATS, Format, LlmData

Row = dict[str, Any]
UNFIT = ""  # the only key of a row without a format; its value is the reason
_NOTHING: tuple[Any, ...] = ("", [], {})
_STRUCTURES = ("messages", "conversations", "tools", "history")
# No two formats begin with the same column.
_FIRST_COLUMNS = tuple((form.needed[0], name) for name, form in FORMATS.items())


@dataclass(frozen=True)
class _Plan:
    """How to read rows with the same columns: pairs of our name and theirs; or an error."""

    pairs: tuple[tuple[str, str], ...] = ()
    left: tuple[str, ...] = ()  # unused columns
    problem: str = ""


@dataclass
class Columns:
    """Reads rows of one data section and records unused columns."""

    data: LlmData
    unused: dict[str, None] = field(default_factory=dict)  # unused columns with values
    numbers: int = 0  # numbers read as texts
    _plans: dict[tuple[str, ...], _Plan] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any]) -> Row | str:
        """The row under our names, or the error of its columns."""
        present = tuple([name for name, value in row.items() if value is not None])
        plan = self._plans.get(present)
        if plan is None:
            plan = self._plans[present] = self._plan(present, row)
        if plan.problem:
            return plan.problem
        for column in plan.left:
            if column not in self.unused and row[column] not in _NOTHING:
                self.unused[column] = None
        kept: Row = {}
        for ours, theirs in plan.pairs:
            value = row[theirs]
            if not isinstance(value, str):
                value = self._as_text(value) if ours not in _STRUCTURES else value
            elif ours in _STRUCTURES and value:
                parsed = _parsed(value)
                if parsed is None:
                    return f"column {theirs!r}: expected a list, found text that is no JSON"
                value = parsed
            kept[ours] = value
        return kept

    def choose(self, present: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split a table's columns into those that may be read and the others."""
        names = tuple(present)
        used: dict[str, None] = {}
        for layout in self.data.formats.values():
            found = {ours: self._theirs(layout, ours, names) for ours in layout.columns}
            if all(found[ours] for ours in layout.needed):
                used |= dict.fromkeys(theirs for theirs in found.values() if theirs)
        known = {*used, *self.data.ignore}
        return list(used), [name for name in names if name not in known]

    def lines(self) -> list[str]:
        """Lines of text about the columns."""
        lines = []
        if self.unused:
            names = ", ".join(self.unused)
            lines.append(f"columns not used: {names} (data.columns, data.prompt or data.ignore)")
        if self.numbers:
            lines.append(f"numbers in place of texts, read as they are written: {self.numbers:,}")
        return lines

    def _plan(self, present: tuple[str, ...], row: Mapping[str, Any]) -> _Plan:
        """Plan for rows with these columns, made at the first one and reused."""
        formats = self.data.formats
        for form in formats.values():
            found = {ours: self._theirs(form, ours, present) for ours in form.columns}
            if all(found[ours] is not None for ours in form.needed):
                pairs = tuple((ours, theirs) for ours, theirs in found.items() if theirs)
                used = {theirs for _, theirs in pairs} | set(self.data.ignore)
                return _Plan(pairs, tuple(column for column in present if column not in used))
        (first, *others) = formats.values()
        if others:
            listed = "; ".join(
                f"{name}: {', '.join(form.needed)}" for name, form in formats.items()
            )
            empty = [column for column, value in row.items() if value is None]
            nothing = f" (and nothing in {_listed(empty)})" if empty else ""
            return _Plan(
                problem=f"expected the columns of one format ({listed}), found {_listed(present)}"
                f"{nothing}; map them, such as data.columns='{{{self._example(present)}}}' (a CSV "
                "file's first line has their names), or set data.prompt and data.answer"
            )
        missing = next(ours for ours in first.needed if not self._theirs(first, ours, present))
        return _Plan(problem=missing_column(self.data, missing, list(row), row))

    def _example(self, present: tuple[str, ...]) -> str:
        """A map of columns that may be meant: those named nearly alike, or else of two the two."""
        for form in self.data.formats.values():
            near = [_near(ours, present) for ours in form.needed]
            if all(near):
                return ", ".join(map("{}: {}".format, form.needed, map(_in_yaml, near)))
        names = present if len(present) == 2 else ("NAME", "NAME")
        return "question: {}, answer: {}".format(*map(_in_yaml, names))

    def _theirs(self, form: Format, ours: str, present: Sequence[str]) -> str | None:
        """The dataset's name for one of our columns, among the existing ones."""
        if ours in self.data.columns:
            names: tuple[str, ...] = (self.data.columns[ours],)
        else:
            names = (ours, *form.also.get(ours, ()))
        return next((name for name in names if name in present), None)

    def _as_text(self, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.numbers += 1
            return json.dumps(value)
        return value


def missing_column(
    data: LlmData, ours: str, found: Sequence[str], row: Mapping[str, Any] | None = None
) -> str:
    """Message for a required column that is missing or empty."""
    theirs = data.columns.get(ours, ours)
    if row is not None and theirs in row:
        return f"column {theirs!r}: expected text, found {described(row[theirs])}"
    near = difflib.get_close_matches(theirs, found, n=1)
    hint = f"map it as data.columns: {{{ours}: {near[0] if near else 'NAME'}}}"
    if data.prompt is not None:
        hint = "correct data.prompt and data.answer"
    return f"missing column {theirs!r}; found {_listed(found)}; {hint}"


def format_of(row: Mapping[str, Any], data: LlmData) -> str:
    """The format of a kept row, by its columns."""
    if data.prompt is not None:
        return "template"
    for column, name in _FIRST_COLUMNS:
        if column in row:
            return name
    return ""


def _in_yaml(name: str | None) -> str:
    """A name as a map on the command line takes it."""
    return (
        str(name)
        if re.fullmatch(r"\w[\w ]*\w|\w", str(name))
        else json.dumps(name, ensure_ascii=False)
    )


def _near(name: str, found: Sequence[str]) -> str | None:
    """The one of the names that is nearly this one, whatever its capitals."""
    alike = {other.strip().lower(): other for other in found}
    near = difflib.get_close_matches(name, alike, n=1, cutoff=0.8)
    return alike[near[0]] if near else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _parsed(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None
