"""Makes tokenised, packed, cached datasets from a profile's data section.

    prepared = prepare(config, tokenizer, Path(".cache"))

Rows are rendered (template.py), encoded (tokenise.py), cut to length, packed, and written as Arrow
files under a digest of rows, tokenizer, settings and this code. Existing files of that name are
only mapped into memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from workloads.data import packing, row_files
from workloads.data import rows as file_rows
from workloads.data.build_once import built_once, nothing
from workloads.data.rows import by_reason, indented
from workloads.engine.pretrained import chat
from workloads.errors import UserError
from workloads.llm.config import LlmConfig, LlmData
from workloads.llm.data.columns import format_of
from workloads.llm.data.report import Report, SplitReport
from workloads.llm.data.rows import Rows, Split, Splits, load_rows
from workloads.llm.data.template import Rendered, RowError, Template
from workloads.llm.data.tokenise import IGNORED, Encoder, Tokens
from workloads.run.integrity import digest

_BATCH = 1000  # rows rendered and encoded at a time
_CHUNK = 4_000_000  # tokens written at a time
_SHOWN = 5
_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "seq_lengths": pa.list_(pa.int32()),
        "row_ids": pa.list_(pa.int64()),
    }
)
_PLACES = pa.schema({"row_id": pa.int64(), "place": pa.string(), "format": pa.string()})


@dataclass(frozen=True)
class Prepared:
    """Data sets with the columns input_ids, labels, seq_lengths and row_ids, one sequence a row.

    seq_lengths: tokens of each row in the sequence. row_ids: numbers of those rows in their source.
    """

    train: Dataset
    evaluation: Dataset | None
    report: Report
    folder: Path

    def places(self, row_ids: Sequence[int], split: Split = "train") -> list[str]:
        """`file:line` of rows, by the row_ids of a batch."""
        table = self._places(split)
        found = np.searchsorted(table["row_id"].to_numpy(), np.asarray(row_ids))
        return [str(place) for place in table["place"].take(pa.array(found))]

    def formats(self) -> dict[int, str]:
        """The format of each training row, by its number in its source."""
        table = self._places("train")
        return dict(zip(table["row_id"].to_pylist(), table["format"].to_pylist(), strict=True))

    def row_numbers(self) -> NDArray[np.int64]:
        """The numbers of the training rows in their sources, in the order of the sequences.

        (rows,): as many as there are rows in all sequences.
        """
        column = self.train.data.column("row_ids").combine_chunks()
        return np.asarray(column.flatten().to_numpy())

    def _places(self, split: Split) -> pa.Table:
        with pa.memory_map(str(self.folder / f"{split}.places.arrow")) as file:
            return pa.ipc.open_stream(file).read_all()


def prepare(
    config: LlmConfig,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    progress: Callable[[], None] = nothing,
    positions: int | None = None,
) -> Prepared:
    """Tokenise the profile's rows, or map the files of an earlier call.

    All ranks may call it at once: one on each machine builds, the others wait. `progress` is called
    repeatedly meanwhile. positions: the longest row that the model takes, None for any. Raises
    UserError naming rows by file and line.
    """
    splits = Splits(config.data)
    name = fingerprint(config.data, splits, tokenizer, positions)
    folder = Path(cache_dir) / "llm" / name
    maker = _Builder(config.data, splits, tokenizer, positions, progress)
    built_once(folder, maker.build, progress)
    report = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    held_out = Dataset.from_file(str(folder / "eval.arrow")) if report.evaluation else None
    return Prepared(Dataset.from_file(str(folder / "train.arrow")), held_out, report, folder)


def fingerprint(
    data: LlmData,
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None = None,
) -> str:
    """Digest of everything that decides the tokens: rows, tokenizer, settings, code."""
    told = (
        splits.fingerprint(),
        data.model_dump_json(),
        repr((positions, splits.left_out())),
        _tokenizer_state(tokenizer),
        *(path.read_bytes() for path in _code()),
        *(item.__version__ for item in (transformers, tokenizers, jinja2)),
    )
    digest = hashlib.blake2b(digest_size=16)
    for part in told:
        content = part if isinstance(part, bytes) else part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _code() -> list[Path]:
    """Digest of the files whose code decides the tokens."""
    others = (packing, file_rows, row_files, chat)
    return [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(m.__file__)) for m in others)]


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else repr((type(tokenizer), sorted(tokenizer.get_vocab().items())))
    )
    return repr((vocabulary, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items())))


@dataclass(frozen=True)
class _Builder:
    """Makes the folder of a prepared dataset."""

    data: LlmData
    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    progress: Callable[[], None]

    def build(self, folder: Path) -> None:
        data, rendering, encoder = (
            self.data,
            Template(self.data, self.tokenizer),
            Encoder(self.tokenizer),
        )
        reports: dict[Split, SplitReport] = {}
        notes = rendering.notes()
        limit = min(data.max_length, self.positions or data.max_length)
        if limit < data.max_length:
            notes.append(
                f"data.max_length is {data.max_length:,}, and the model has {limit:,} positions: "
                f"rows may have {limit:,} tokens"
            )
        for split in ("train", "eval"):
            rows = self.splits.rows(split)
            if split == "train" or len(rows) or rows.bad:
                own = SplitReport(twins=rows.twins)
                maker = _Maker(data, rendering, encoder, rows, own, limit)
                reports[split] = maker.make(folder, split, self.progress)
                notes += [line for line in rows.table.lines() if line not in notes]
        left_out = self.splits.left_out()
        report = Report(
            data.max_length, data.too_long, reports["train"], reports.get("eval"), notes, left_out
        )
        (folder / "report.json").write_text(json.dumps(report.as_dict()), encoding="utf-8")


@dataclass
class _Maker:
    """Makes the files of one split."""

    data: LlmData
    template: Template
    encoder: Encoder
    rows: Rows
    report: SplitReport
    limit: int  # tokens of the longest row: data.max_length, or the model's positions
    # Names and lengths of the first rows over the limit.
    _over: list[str] = field(default_factory=list)
    _formats: list[str] = field(default_factory=list)  # of the rows that are kept
    _seen: set[int] = field(default_factory=set)  # hashes of rows, to count repeated ones

    def make(self, folder: Path, split: Split, progress: Callable[[], None]) -> SplitReport:
        flat = folder / f"{split}.ids.bin", folder / f"{split}.labels.bin"
        with flat[0].open("wb") as ids, flat[1].open("wb") as labels:
            numbers, lengths = self._write_flat(ids, labels, progress)
        self._settle(len(numbers))
        groups = (
            packing.pack(lengths, self.data.max_length)
            if self.data.packing
            else [[row] for row in range(len(lengths))]
        )
        self.report.rows, self.report.sequences = len(numbers), len(groups)
        self.report.tokens = int(lengths.sum())
        if self.data.packing:
            room = len(groups) * self.data.max_length
            self.report.packing_efficiency = round(self.report.tokens / room, 6)
        self.report.digest = _digest_of(flat, groups)
        _write_sequences(folder / f"{split}.arrow", flat, groups, lengths, numbers, progress)
        self._write_places(folder / f"{split}.places.arrow", numbers)
        for file in flat:
            file.unlink()
        return self.report

    def _write_flat(
        self, ids: BinaryIO, labels: BinaryIO, progress: Callable[[], None]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Write all tokens one after the other; returns the numbers and lengths of their rows."""
        numbers, lengths = [], []
        for batch, rows in self.rows.batches(_BATCH):
            progress()
            for number, name, tokens in self._tokens(batch, rows):
                if (fitting := self._fitting(number, tokens)) is None:
                    continue
                self._formats.append(name)
                self._count_repeated(fitting.ids)
                ids.write(fitting.ids.tobytes())
                labels.write(fitting.labels.tobytes())
                self.report.learnt_tokens += int(np.count_nonzero(fitting.labels != IGNORED))
                numbers.append(number)
                lengths.append(len(fitting.ids))
        return np.array(numbers, np.int64), np.array(lengths, np.int64)

    def _tokens(
        self, numbers: Sequence[int], rows: list[dict[str, Any]]
    ) -> Iterator[tuple[int, str, Tokens]]:
        good: list[tuple[int, str, Rendered]] = []
        formats = self.report.formats
        for number, row, rendered in zip(numbers, rows, self.template.render(rows), strict=True):
            if isinstance(rendered, RowError):
                self._bad(number, str(rendered))
                continue
            name = format_of(row, self.data)
            good.append((number, name, rendered))
            formats[name] = formats.get(name, 0) + 1
        encoded = self.encoder.encode([rendered for _, _, rendered in good])
        for (number, name, rendered), tokens in zip(good, encoded, strict=True):
            self.report.rebuilt += rendered.rebuilt
            self.report.parted += tokens.parted
            for key, detail in (*rendered.remarks, *tokens.remarks):
                self.report.remark(key, self.rows.place(number), detail)
            yield number, name, tokens

    def _count_repeated(self, ids: NDArray[np.int32]) -> None:
        told = hash(ids.tobytes())
        self.report.repeated += told in self._seen
        self._seen.add(told)

    def _fitting(self, number: int, tokens: Tokens) -> Tokens | None:
        """The row cut to max_length by the policy; None where it is left out."""
        found, limit = len(tokens.ids), self.limit
        self.report.longest = max(self.report.longest, found)
        if found > limit:
            self.report.too_long += 1
            if self.data.too_long != "truncate":
                if len(self._over) < _SHOWN:
                    self._over.append(f"{self.rows.place(number)}: {found:,} tokens")
                return None
            tokens = Tokens(tokens.ids[:limit], tokens.labels[:limit])
        # The first token of a row follows no token, so it cannot be learnt.
        if not np.any(tokens.labels[1:] != IGNORED):
            cut = f"cutting it to {limit} tokens leaves nothing of the answer; raise max_length"
            self._bad(number, cut if found > limit else "the answer has no tokens")
            return None
        return tokens

    def _bad(self, number: int, reason: str) -> None:
        self.report.bad_rows.append(f"{self.rows.place(number)}: {reason}")

    def _settle(self, good: int) -> None:
        """Stop where rows are too long or too many are bad."""
        self.report.bad_rows[:0] = self.rows.bad
        bad, limit = self.report.bad_rows, self.limit
        if self.data.too_long == "error" and self.report.too_long:
            shown = "".join(f"\n  {row}" for row in self._over)
            if limit < self.data.max_length:
                raise UserError(
                    f"expected rows of at most {limit:,} tokens, as many as the model has "
                    f"positions, found {self.report.too_long:,} longer ones; the model has no more "
                    f"positions: set data.too_long to truncate or drop. The first ones:{shown}"
                )
            raise UserError(
                f"expected rows of at most {limit:,} tokens, found {self.report.too_long:,} longer "
                f"ones; set data.max_length to {self.report.longest}, or data.too_long to truncate "
                f"or drop. The first ones:{shown}"
            )
        total = len(self.rows) + len(self.rows.bad)
        allowed = self.data.max_bad_rows
        allowed = max(10, total // 1000) if allowed is None else allowed
        if len(bad) <= allowed and good:
            return
        if not total and self.rows.twins:
            raise UserError(
                f"expected rows to learn from, found none: all {self.rows.twins} that are not held "
                "out equal one that is; give rows that differ, or set data.eval_rows=0"
            )
        wanted = f"at most {allowed} bad rows" if len(bad) > allowed else "rows to learn from"
        left = f" and {self.report.too_long} too long" if self.report.too_long else ""
        shown = indented(by_reason(bad))
        fix = "fix them or raise data.max_bad_rows."
        if len(bad) <= allowed and self.report.too_long:
            fix = f"raise data.max_length (the longest row has {self.report.longest:,} tokens)."
        raise UserError(
            f"expected {wanted}, found {len(bad)} bad{left} among {total}; {fix}{shown}"
        )

    def _write_places(self, path: Path, numbers: NDArray[np.int64]) -> None:
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        places = [self.rows.place(int(number)) for number in numbers]
        formats = [self._formats[place] for place in order]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _PLACES) as writer:
            columns = [pa.array(numbers), pa.array(places), pa.array(formats)]
            writer.write_batch(pa.record_batch(columns, _PLACES))


def _write_sequences(
    path: Path,
    flat: tuple[Path, Path],
    groups: list[list[int]],
    lengths: NDArray[np.int64],
    numbers: NDArray[np.int64],
    progress: Callable[[], None],
) -> None:
    """Gather the rows of each group from the flat files, in pieces that fit into memory."""
    ids, labels = (np.memmap(file, dtype=np.int32, mode="r") for file in flat)
    starts = np.cumsum(lengths) - lengths
    longest = max(int(lengths[group].sum()) for group in groups)
    step = max(1, _CHUNK // longest)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for first in range(0, len(groups), step):
            progress()
            part = groups[first : first + step]
            rows = np.concatenate([np.asarray(group) for group in part])
            counts = np.array([len(group) for group in part])
            mine = lengths[rows]
            ends = np.cumsum(mine)
            tokens = np.repeat(starts[rows] - (ends - mine), mine) + np.arange(int(mine.sum()))
            in_rows = np.concatenate(([0], np.cumsum(counts)))
            in_tokens = np.concatenate(([0], ends))[in_rows]
            columns = [
                _lists(in_tokens, ids[tokens]),
                _lists(in_tokens, labels[tokens]),
                _lists(in_rows, mine.astype(np.int32)),
                _lists(in_rows, numbers[rows]),
            ]
            writer.write_batch(pa.record_batch(columns, _SCHEMA))


def _digest_of(files: Sequence[Path], groups: list[list[int]]) -> str:
    """Digest of what a resumed run must find again: tokens, labels, and rows of each sequence."""
    told = hashlib.blake2b(digest_size=8)
    for file in files:
        told.update(digest(file).encode())
    for group in groups:
        told.update(np.asarray([len(group), *group], np.int64).tobytes())
    return told.hexdigest()


def _lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


__all__ = ["Prepared", "Report", "Rows", "fingerprint", "load_rows", "prepare"]
