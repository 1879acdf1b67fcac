"""Rows of a profile's sources, local files or the hub, and the held-out ones.

load_rows(config.data, "train")    load_rows(config.data, "eval")
"""

import hashlib
import json
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from workloads.data import row_files
from workloads.data import rows as local_rows
from workloads.engine.hub import hub
from workloads.errors import UserError
from workloads.llm.config import LlmData
from workloads.llm.data.columns import UNFIT, Columns

Split = Literal["train", "eval"]

_SUFFIXES = (*row_files.TEXTS, *row_files.TABLES, *row_files.PACKED, ".zip")


class Table(Protocol):
    """All rows of one file, folder or split, and a name for each."""

    bad: list[str]

    def __len__(self) -> int: ...
    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by number, under our column names."""

    def place(self, number: int) -> str:
        """`file:line`, or the like, of a row."""

    def lines(self) -> list[str]:
        """Lines of text about rows and columns that were read or not."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split. `numbers` are their indices among all rows of the source."""

    table: Table
    numbers: Sequence[int]
    bad: Sequence[str] = ()  # unreadable rows, each as `file:line: reason`
    twins: int = 0  # training rows left out because they equal a held-out one

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, batch in self.batches(1000):
            yield from batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.table.take([self.numbers[index]])[0]

    def place(self, number: int) -> str:
        """Place of the row of this number: `file:line`, for messages."""
        return self.table.place(number)

    def batches(self, size: int) -> Iterator[tuple[Sequence[int], list[dict[str, Any]]]]:
        """Row numbers and rows, at most `size` at a time."""
        for start in range(0, len(self), size):
            numbers = self.numbers[start : start + size]
            yield numbers, self.table.take(numbers)


@dataclass(frozen=True)
class Source:
    """A local file, folder or pattern, or one split of a dataset on the hub."""

    name: str
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    weight: float = 1

    @property
    def is_local(self) -> bool:
        path = Path(self.name).expanduser()
        named = self.name.startswith((".", "/", "~")) or path.suffix.lower() in _SUFFIXES
        return named or path.exists() or row_files.is_pattern(path)

    @property
    def path(self) -> Path:
        return Path(self.name).expanduser()


def load_rows(data: LlmData, split: Split) -> Rows:
    """The rows to train on or the held-out ones, which may be none.

    Rows come under our column names. Raises UserError for what is missing, malformed or refused,
    Retry where the network is at fault.
    """
    return Splits(data).rows(split)


def train_sources(data: LlmData) -> list[Source]:
    """The sources of training rows, in the order of the profile."""
    return [
        Source(
            source.source, source.subset, source.revision, source.split or data.split, source.weight
        )
        for source in data.sources
    ]


def eval_sources(data: LlmData) -> list[Source]:
    """The sources of held-out rows; empty where they are part of the training rows.

    Raises UserError for data.eval_split beside a local source, which has no splits.
    """
    if data.eval_source is not None:
        same = data.eval_source == data.source
        revision = data.revision if same else None
        split = data.eval_split or "test"
        return [Source(data.eval_source, data.subset if same else None, revision, split)]
    if data.eval_split is None:
        return []
    sources = [replace(item, split=data.eval_split, weight=1) for item in train_sources(data)]
    for source in sources:
        if source.is_local:
            raise UserError(
                f"data.eval_split is {data.eval_split!r}, but {source.name} is a local source, "
                "which has no splits; name the held-out file in data.eval_source, or set "
                "data.eval_rows"
            )
    return sources


@dataclass
class Splits:
    """The splits of one data section; each source is read once, on first use."""

    data: LlmData
    _opened: dict[Source, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Digest of the rows' content, without reading local rows one by one."""
        sources = [*train_sources(self.data), *eval_sources(self.data)]
        return " ".join(self._digest(source) for source in sources)

    def left_out(self) -> list[str]:
        """The files of local folders that hold no readable rows."""
        sources = [*train_sources(self.data), *eval_sources(self.data)]
        folders = dict.fromkeys(source.path for source in sources if source.is_local)
        return [str(file) for folder in folders for file in row_files.left_out(folder)]

    def rows(self, split: Split) -> Rows:
        """The rows of one split; see `load_rows`."""
        own = eval_sources(self.data)
        if split == "eval" and own:
            table = self._joined(own)
            return Rows(table, range(len(table)), table.bad)
        if split == "eval" and self.data.eval_rows == 0:
            return Rows(_Joined([]), range(0))
        sources = train_sources(self.data)
        table = self._joined(sources)
        if own or self.data.eval_rows == 0:
            rows = Rows(table, range(len(table)), table.bad)
        else:
            held = held_out(len(table), self.data.eval_rows)
            rows = Rows(table, held) if split == "eval" else _all_but(table, held)
        weights = [source.weight for source in sources]
        if split == "eval" or set(weights) == {1}:
            return rows
        return replace(rows, numbers=table.weighted(rows.numbers, weights))

    def _digest(self, source: Source) -> str:
        if source.is_local:
            return local_rows.fingerprint(source.path)
        return str(self._table(source).fingerprint)

    def _joined(self, sources: Sequence[Source]) -> "_Joined":
        return _Joined([self._table(replace(source, weight=1)) for source in sources])

    def _table(self, source: Source) -> Any:
        if source not in self._opened:
            kind = _LocalTable if source.is_local else _HubTable
            self._opened[source] = kind(self.data, source)
        return self._opened[source]


def held_out(total: int, count: int) -> list[int]:
    """Numbers of `count` rows, one from each equal part of `total`; always the same ones.

    They do not depend on the training seed: runs with other seeds are measured on the same rows.
    Raises UserError where nothing would be left to train on.
    """
    if count >= total:
        raise UserError(
            f"expected more rows than data.eval_rows, found {total} rows and eval_rows {count}; "
            "lower data.eval_rows"
        )
    chance = random.Random(total)
    return [
        chance.randrange(part * total // count, (part + 1) * total // count)
        for part in range(count)
    ]


def _all_but(table: Table, held: list[int]) -> Rows:
    """The other rows, without those that equal a held-out one."""
    known = {_digest_of(row) for row in table.take(held)}
    apart = set(held)
    rest = [number for number in range(len(table)) if number not in apart]
    kept = []
    for start in range(0, len(rest), 1000):
        numbers = rest[start : start + 1000]
        rows = zip(numbers, table.take(numbers), strict=True)
        kept += [number for number, row in rows if _digest_of(row) not in known]
    return Rows(table, kept, table.bad, twins=len(rest) - len(kept))


def _digest_of(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)


class _Joined:
    """The tables of several sources as one, in their order; none has no rows."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._starts = [0, *accumulate(len(table) for table in tables)]
        self.bad = [bad for table in tables for bad in table.bad]

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if len(self._tables) == 1:
            return self._tables[0].take(numbers)
        runs = groupby(numbers, key=self._source)
        return [
            row
            for source, run in runs
            for row in self._tables[source].take([place - self._starts[source] for place in run])
        ]

    def place(self, number: int) -> str:
        source = self._source(number)
        return self._tables[source].place(number - self._starts[source])

    def lines(self) -> list[str]:
        return [line for table in self._tables for line in table.lines()]

    def weighted(self, numbers: Sequence[int], weights: Sequence[float]) -> list[int]:
        """The numbers of an epoch: each as often as its source's weight.

        For the fraction of a weight, that share of rows, evenly spread, is taken once more.
        """
        found: list[int] = []
        for source, run in groupby(numbers, key=self._source):
            own = list(run)
            whole, part = divmod(weights[source], 1)
            count = round(part * len(own))
            found += own * int(whole) + [own[i * len(own) // count] for i in range(count)]
        return found

    def _source(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1


class _LocalTable:
    """Rows of local files."""

    def __init__(self, data: LlmData, source: Source) -> None:
        self._columns = Columns(data)
        self._rows = local_rows.read_rows(
            source.path, self._columns.read, data.max_bad_rows, data.encoding
        )
        self.bad = [str(row) for row in self._rows.bad]

    def __len__(self) -> int:
        return len(self._rows.rows)

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        rows = self._rows.rows
        return [rows[number] for number in numbers]

    def place(self, number: int) -> str:
        return self._rows.place(number)

    def lines(self) -> list[str]:
        counts = self._rows.counts()
        files = (f"{file.name} {count:,}" for file, count in counts.items())
        return [f"rows of {', '.join(files)}"] * (len(counts) > 1) + self._columns.lines()


class _HubTable:
    """Rows of one split of a dataset on the hub, memory-mapped from the cache."""

    def __init__(self, data: LlmData, source: Source) -> None:
        self.bad: list[str] = []
        self._source, self._columns = source, Columns(data)
        dataset = _download(source)
        self.fingerprint = _fingerprint(dataset, source)
        used, self._unused = self._columns.choose(dataset.column_names)
        if not used:
            problem = self._columns.read(dict.fromkeys(dataset.column_names, ""))
            raise UserError(f"{source.name}: {problem}")
        self._dataset = dataset.select_columns(used)

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        columns = self._dataset[list(numbers)]
        rows = zip(*columns.values(), strict=True)
        read = (self._columns.read(dict(zip(columns, row, strict=True))) for row in rows)
        return [row if isinstance(row, dict) else {UNFIT: row} for row in read]

    def place(self, number: int) -> str:
        subset = f"/{self._source.subset}" if self._source.subset else ""
        return f"{self._source.name}{subset}[{self._source.split}]:{number}"

    def lines(self) -> list[str]:
        self._columns.unused |= dict.fromkeys(self._unused)
        return self._columns.lines()


def _download(source: Source) -> Any:
    """Load the split from the hub, or from the cache where there is no network."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    offline = hub.probe(source.name, "dataset", source.revision) == "cached"
    with hub.explained(source.name, "dataset", source.revision), _only_cached(offline):
        try:
            return load_dataset(
                source.name, source.subset, split=source.split, revision=source.revision
            )
        except (ValueError, RuntimeError, DatasetsError, FileNotFoundError) as error:
            if hub.explain(error, source.name, "dataset", source.revision) is not None:
                raise
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"{source.name}: {reason}; "
                "set data.subset, data.split and data.eval_split to what the dataset has"
            ) from error


@contextmanager
def _only_cached(offline: bool) -> Iterator[None]:
    """Keep `datasets` off a hub that does not answer: it would try for half a minute."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _fingerprint(dataset: Any, source: Source) -> str:
    """Digest of the cache's files, whose folders name the version and commit of the data."""
    names = ["/".join(Path(file["filename"]).parts[-5:]) for file in dataset.cache_files]
    state = repr((source, len(dataset), names))
    return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()


__all__ = ["Rows", "Source", "Split", "Splits", "Table", "held_out", "load_rows"]
