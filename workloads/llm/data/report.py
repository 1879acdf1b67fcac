"""Report of data preparation: for the terminal, the manifest, and `check --deep`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from workloads.data.row_files import left_out_lines
from workloads.data.rows import by_reason

_SHOWN = 5
# Remarks on rows, by the keys that `template.Rendered` and `tokenise.Tokens` use.
REMARKS = {
    "trailing": "end with turns behind the last answer, which are left out",
    "own_system": "have a system turn of their own, so data.system_prompt is left out there",
    "merged": "have their system turn merged into the first question (data.system_turn)",
    "closed": "have no thoughts where the prompt opens them: learnt with the thought closed first",
    "thoughts": "lose the thoughts of earlier answers, which the chat template leaves out",
    "tools": "have tools that the chat template does not write",
    "foreign": "hold what looks like a special token and is none here, so it is cut into pieces",
    "lossy": "hold text that does not come back from the tokenizer",
}


@dataclass
class SplitReport:
    """One split. `rows` are those in it; tokens are counted after rows were cut to length."""

    rows: int = 0
    tokens: int = 0
    learnt_tokens: int = 0  # those with a label
    longest: int = 0  # tokens of the longest row as it was found
    too_long: int = 0  # rows longer than max_length
    sequences: int = 0  # the same as rows without packing
    packing_efficiency: float | None = None  # share of the sequences' room that holds tokens
    twins: int = 0  # training rows left out since they equal a held-out one
    repeated: int = 0  # rows whose tokens an earlier row has too
    rebuilt: int = 0  # rows that the template writes differently once they are answered
    parted: int = 0  # rows whose tokens would span the end of the prompt
    digest: str = ""  # of all tokens and labels, and of which rows share a sequence
    bad_rows: list[str] = field(default_factory=list)
    formats: dict[str, int] = field(default_factory=dict)  # rows of each
    # Key of REMARKS → the places of its rows: how many, and the first few with a detail.
    remarks: dict[str, int] = field(default_factory=dict)
    remarked: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, key: str, place: str, detail: str) -> None:
        """Count a row with a remark."""
        self.remarks[key] = self.remarks.get(key, 0) + 1
        first = self.remarked.setdefault(key, [])
        if len(first) < _SHOWN:
            first.append(f"{place}: {detail}" if detail else place)


@dataclass
class Report:
    """Both splits, the policy for long rows, and further remarks."""

    max_length: int
    too_long: str
    train: SplitReport
    evaluation: SplitReport | None
    notes: list[str]
    left_out: list[str] = field(default_factory=list)  # files beside the data that are not read

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Report":
        evaluation = values["evaluation"]
        return cls(
            values["max_length"],
            values["too_long"],
            SplitReport(**values["train"]),
            None if evaluation is None else SplitReport(**evaluation),
            list(values["notes"]),
            list(values["left_out"]),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON; `from_dict` reads them."""
        return asdict(self)

    def lines(self, whole: bool = True) -> list[str]:
        """Lines for people; whole: with bad rows and the files that are left out."""
        lines = list(self._split("training rows", self.train, whole))
        if self.evaluation is not None:
            lines += self._split("held-out rows", self.evaluation, whole)
        return lines + self.notes + (left_out_lines(self.left_out) if whole else [])

    def _split(self, name: str, split: SplitReport, whole: bool) -> Iterator[str]:
        yield (
            f"{name}: {split.rows:,}, {split.tokens:,} tokens "
            f"({split.learnt_tokens:,} to learn), longest {split.longest:,}"
        )
        if split.packing_efficiency is not None:
            yield (
                f"  packed into {split.sequences:,} sequences of {self.max_length:,} tokens, "
                f"{split.packing_efficiency:.2%} full"
            )
        if split.too_long:
            done = "cut to it" if self.too_long == "truncate" else "left out"
            yield f"  {split.too_long:,} rows over {self.max_length:,} tokens, {done}"
        if split.twins:
            yield f"  {split.twins:,} left out that equal a held-out row"
        if split.repeated:
            yield f"  {split.repeated:,} rows are repeated"
        if split.rebuilt:
            yield (
                f"  {split.rebuilt:,} rows read differently once answered (chat template): "
                "only their last answer is learnt, behind the prompt as a model is given it"
            )
        if split.parted:
            yield f"  {split.parted:,} rows cut where a prompt ends: a token would span it"
        if len(split.formats) > 1 or "auto" in split.formats:
            counts = (f"{count:,} {name}" for name, count in split.formats.items())
            yield f"  formats: {', '.join(counts)}"
        for key, count in split.remarks.items():
            rows = "row" if count == 1 else "rows"
            yield f"  {count:,} {rows} {REMARKS[key]}, such as {split.remarked[key][0]}"
        if whole and (bad := split.bad_rows):
            yield f"  {len(bad):,} bad {'row' if len(bad) == 1 else 'rows'} skipped:"
            yield from (f"    {line}" for line in by_reason(bad))
