"""Preview of rows: given and learnt text in colour, tokens, and statistics as table and chart.

On a terminal learnt text is green; elsewhere it stands between [[ and ]].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from workloads.llm.data.prepare import Prepared
from workloads.llm.data.report import SplitReport
from workloads.llm.data.tokenise import IGNORED

Counts = NDArray[np.int64]
CHART = "row_lengths.png"
_GIVEN, _LEARNT = "", "bold green"
_MOST_TOKENS = 60  # of a row, at its beginning and at its end
_PERCENTS = (0, 50, 90, 99, 100)


@dataclass(frozen=True)
class PreviewRow:
    """One row as it is learnt; number: of the row in its source."""

    number: int
    ids: list[int]
    labels: list[int]

    @property
    def learnt(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def show(data: Prepared, tokenizer: PreTrainedTokenizerBase, count: int, console: Console) -> None:
    """Print the first rows, the longest, the shortest, and one of every format."""
    lengths, learnt = measure(data)
    formats = data.formats()
    for title, number in _chosen(data, lengths, formats, count).items():
        row = _row(data, number)
        place = data.places([row.number])[0]
        facts = f"{len(row.ids):,} tokens, {row.learnt:,} to learn, {formats[row.number]}"
        console.rule(Text(f"{title} · {place} · {facts}"), align="left")
        console.print(_text(tokenizer, row, marks=not console.is_terminal), soft_wrap=True)
        console.print(_tokens(tokenizer, row, marks=not console.is_terminal), soft_wrap=True)
    console.rule(align="left")
    console.print(statistics(data.report.train, lengths, learnt))


def measure(data: Prepared) -> tuple[Counts, Counts]:
    """Tokens of every row and how many are learnt, (rows,) each, in the order of the sequences."""
    lengths, learnt = [], []
    for batch in data.train.with_format("arrow").iter(1000):
        own = batch["seq_lengths"].combine_chunks().flatten().to_numpy()
        labels = batch["labels"].combine_chunks().flatten().to_numpy()
        known = np.concatenate(([0], np.cumsum(labels != IGNORED)))
        ends = np.cumsum(own)
        lengths.append(own)
        learnt.append(known[ends] - known[ends - own])
    return np.concatenate(lengths), np.concatenate(learnt)


def statistics(report: SplitReport, lengths: Counts, learnt: Counts) -> Table:
    """Lengths of rows, and numbers of cut, dropped, repeated and remarked rows."""
    table = Table(title="training rows", title_justify="left")
    for name in ("", "rows", "least", "half", "90 %", "99 %", "most", "all"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in (("tokens", lengths), ("tokens to learn", learnt)):
        spread = (f"{value:,.0f}" for value in np.percentile(values, _PERCENTS))
        table.add_row(name, f"{len(values):,}", *spread, f"{int(values.sum()):,}")
    counts = {
        "longer than the limit": report.too_long,
        "bad, left out": len(report.bad_rows),
        "equal to a held-out row, left out": report.twins,
        "repeated": report.repeated,
    }
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    return table


def draw(lengths: Counts, learnt: Counts, path: Path) -> None:
    """Write the lengths of rows as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, lengths.max() + 1, min(60, int(lengths.max()) + 2))
    bins = [float(edge) for edge in edges]
    axes.hist(lengths, bins, color="#9db4d3", label="tokens")
    axes.hist(learnt, bins, color="#1f4e8c", alpha=0.8, label="tokens to learn")
    axes.set(xlabel="tokens of a row", ylabel="rows", title=f"{len(lengths):,} training rows")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _chosen(data: Prepared, lengths: Counts, formats: dict[int, str], count: int) -> dict[str, int]:
    """Title → index of a row among all rows of the sequences; none twice."""
    numbers = data.row_numbers()
    order = np.argsort(numbers, kind="stable")
    found = {f"row {rank + 1}": int(place) for rank, place in enumerate(order[:count])}
    found["the longest"] = int(lengths.argmax())
    found["the shortest"] = int(lengths.argmin())
    shown = {formats[int(numbers[place])] for place in found.values()}
    for place in order:
        name = formats[int(numbers[place])]
        if name not in shown:
            shown.add(name)
            found[f"the first {name}"] = int(place)
    titles: dict[int, str] = {}
    for title, place in found.items():
        titles[place] = f"{titles[place]}, {title}" if place in titles else title
    return {title: place for place, title in titles.items()}


def _row(data: Prepared, place: int) -> PreviewRow:
    """The row at a place among all rows, taken out of its sequence."""
    before = 0
    for sequence in data.train:
        count = len(sequence["row_ids"])
        if place < before + count:
            own = place - before
            start = sum(sequence["seq_lengths"][:own])
            end = start + sequence["seq_lengths"][own]
            number = sequence["row_ids"][own]
            return PreviewRow(
                number, sequence["input_ids"][start:end], sequence["labels"][start:end]
            )
        before += count
    raise IndexError(place)


def _runs(row: PreviewRow) -> Iterator[tuple[bool, list[int]]]:
    """Tokens that follow each other and are all learnt, or all given."""
    run: list[int] = []
    for place, token in enumerate(row.ids):
        is_learnt = row.labels[place] != IGNORED
        if run and is_learnt != (row.labels[place - 1] != IGNORED):
            yield not is_learnt, run
            run = []
        run.append(token)
    if run:
        yield row.labels[-1] != IGNORED, run


def _text(tokenizer: PreTrainedTokenizerBase, row: PreviewRow, marks: bool) -> Text:
    text = Text()
    for is_learnt, ids in _runs(row):
        words = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        style = _LEARNT if is_learnt else _GIVEN
        text.append(f"[[{words}]]" if is_learnt and marks else words, style)
    return text


def _tokens(tokenizer: PreTrainedTokenizerBase, row: PreviewRow, marks: bool) -> Text:
    text = Text("tokens: ", "dim")
    cut = len(row.ids) - _MOST_TOKENS
    for place, (token, label) in enumerate(zip(row.ids, row.labels, strict=True)):
        if _MOST_TOKENS <= place < cut:
            if place == _MOST_TOKENS:
                text.append(f"… {cut - _MOST_TOKENS} more … ", "dim")
            continue
        piece = _piece(tokenizer, token)
        is_learnt = label != IGNORED
        text.append(f"[{piece}]" if marks and is_learnt else piece, "green" if is_learnt else "dim")
        text.append(" ")
    return text


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as readable text, with visible white space."""
    words = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if not words or "\ufffd" in words:
        words = str(tokenizer.convert_ids_to_tokens(token))
    return words.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


__all__ = ["CHART", "draw", "measure", "show", "statistics"]
