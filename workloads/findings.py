"""Findings of `tatara check` and `tatara doctor`, and their table.

Standard library only: the doctor runs where nothing is installed yet.
"""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "error", "skipped"]
_MARKS: dict[Level, str] = {
    "ok": "ok",
    "warning": "warning",
    "error": "ERROR",
    "skipped": "skipped",
}
_NAME, _LEVEL, _GAP, _NARROWEST = 22, 7, 2, 16  # widths of the table's columns


@dataclass(frozen=True)
class Finding:
    """One check: its name, level, what was found, how to fix it, and what is needed.

    An error means that a run could not start. For a skipped check `found` is the reason.
    """

    name: str
    level: Level
    found: str
    fix: str = ""
    needed: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether there is something to fix."""
        return self.level in ("warning", "error")

    def line(self) -> str:
        """Everything in one line."""
        needed = f"; needed: {self.needed}" if self.needed else ""
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{_MARKS[self.level]:<7} {self.name}: {self.found}{needed}{fix}"


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as plain values, for programs."""
    return [asdict(finding) for finding in findings]


def summary(findings: Sequence[Finding], subject: str) -> str:
    """The last line: whether a run can start, and how many errors and warnings there are."""
    counts = []
    for level in ("error", "warning"):
        number = sum(finding.level == level for finding in findings)
        counts += [f"{number} {level}{'' if number == 1 else 's'}"] if number else []
    can = "cannot" if any(finding.level == "error" for finding in findings) else "can"
    return f"{subject} {can} start here: {', '.join(counts) or 'nothing to fix'}"


def table(findings: Sequence[Finding], columns: int | None = None) -> str:
    """Findings as a table for people; the command that fixes one stands below its row, uncut."""
    width = columns or shutil.get_terminal_size((110, 24)).columns
    rest = max(2 * _NARROWEST, width - _NAME - _LEVEL - 3 * _GAP)
    widths = (_NAME, rest - rest * 2 // 5, rest * 2 // 5, _LEVEL)
    lines = [_row(("check", "found", "needed", "verdict"), widths), "-" * width]
    for finding in findings:
        texts = (finding.name, finding.found, finding.needed, _MARKS[finding.level])
        lines.append(_row(texts, widths))
        if finding.fix:
            lines.append(f"{' ' * _GAP}-> {finding.fix}")
    return "\n".join(lines)


def _row(texts: Sequence[str], widths: Sequence[int]) -> str:
    """One row of the table, with as many lines as its longest text needs."""
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(texts, widths, strict=True)]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = [f"{part:<{width}}" for part, width in zip(parts, widths, strict=True)]
        lines.append((" " * _GAP).join(padded).rstrip())
    return "\n".join(lines)
