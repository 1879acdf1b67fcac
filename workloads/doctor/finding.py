"""One thing looked at, and how all of them are shown."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "error", "skipped"]
_MARKS = {"ok": "ok", "warning": "warning", "error": "ERROR", "skipped": "skipped"}
_CHECK, _VERDICT, _GAP, _NARROWEST = 22, 7, 2, 16


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found and needed, and the command that mends it.

    Of a skipped look `found` is the reason. An error means that a run could not start.
    """

    check: str
    verdict: Verdict
    found: str
    needed: str = ""
    mend: str = ""

    def line(self) -> str:
        """Everything in one line."""
        needed = f"; needed: {self.needed}" if self.needed else ""
        mend = f"; mend it with: {self.mend}" if self.mend else ""
        return f"{_MARKS[self.verdict]}: {self.check}: found {self.found}{needed}{mend}"


def is_bad(finding: Finding) -> bool:
    """Whether there is something to mend."""
    return finding.verdict in ("warning", "error")


def summary(findings: Sequence[Finding], subject: str) -> str:
    """The last line: whether a run can start, and how many things are not as they should be."""
    errors = sum(one.verdict == "error" for one in findings)
    warnings = sum(one.verdict == "warning" for one in findings)
    counts = [_count(errors, "error"), _count(warnings, "warning")]
    told = ", ".join(count for count in counts if count) or "nothing to mend"
    return f"{subject} {'cannot' if errors else 'can'} start here: {told}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}" if number else ""


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(one) for one in findings]


def table(findings: Sequence[Finding], columns: int | None = None) -> str:
    """Findings as a table for people; the command that mends stands below its row, uncut."""
    width = columns or shutil.get_terminal_size((110, 24)).columns
    rest = max(2 * _NARROWEST, width - _CHECK - _VERDICT - 3 * _GAP)
    widths = (_CHECK, rest - rest * 2 // 5, rest * 2 // 5, _VERDICT)
    lines = [_row(("check", "found", "needed", "verdict"), widths), "-" * width]
    for one in findings:
        lines.append(_row((one.check, one.found, one.needed, _MARKS[one.verdict]), widths))
        if one.mend:
            lines.append(f"{' ' * _GAP}-> {one.mend}")
    return "\n".join(lines)


def _row(texts: Sequence[str], widths: Sequence[int]) -> str:
    """One row of the table, as many lines high as its longest text is."""
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(texts, widths, strict=True)]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = [f"{part:<{width}}" for part, width in zip(parts, widths, strict=True)]
        lines.append((" " * _GAP).join(padded).rstrip())
    return "\n".join(lines)
