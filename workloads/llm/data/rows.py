"""Rows from where a profile says they are: local files or the hub, and the ones held out.

load_rows(config.data, "train")    load_rows(config.data, "eval")
"""

import difflib
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from workloads.data import rows as local_rows
from workloads.engine.hub import hub
from workloads.errors import UserError
from workloads.llm.config import COLUMNS, LlmData

Split = Literal["train", "eval"]

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".gz", ".zip")
# What a column holds: object for one that is text in one data set and a list in another.
_TYPES: dict[str, type] = {
    "question": str,
    "answer": str,
    "prompt": object,
    "completion": object,
    "messages": list,
    "text": str,
}


class Table(Protocol):
    """All rows of one file, folder or split, and a name for each."""

    bad: list[str]

    def __len__(self) -> int: ...
    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by number, under our column names."""

    def place(self, number: int) -> str:
        """`file:line`, or the like, of a row."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split. `numbers` are their places among all rows of the source."""

    table: Table
    numbers: Sequence[int]
    bad: Sequence[str] = ()  # what could not be read, each as `file:line: reason`
    twins: int = 0  # rows left out of training since they equal a held-out one

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, batch in self.batches(1000):
            yield from batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.table.take([self.numbers[index]])[0]

    def place(self, number: int) -> str:
        """Where the row of this number is: `file:line`, for messages."""
        return self.table.place(number)

    def batches(self, size: int) -> Iterator[tuple[Sequence[int], list[dict[str, Any]]]]:
        """Row numbers and rows, at most `size` at a time."""
        for start in range(0, len(self), size):
            numbers = self.numbers[start : start + size]
            yield numbers, self.table.take(numbers)


@dataclass(frozen=True)
class Source:
    """A local file or folder, or one split of a data set on the hub."""

    name: str
    subset: str | None = None
    revision: str | None = None
    split: str = "train"

    @property
    def is_local(self) -> bool:
        path = Path(self.name).expanduser()
        named = self.name.startswith((".", "/", "~")) or path.suffix.lower() in _SUFFIXES
        return named or path.exists()

    @property
    def path(self) -> Path:
        return Path(self.name).expanduser()


def load_rows(data: LlmData, split: Split) -> Rows:
    """The rows to train on or the held-out ones; no held-out rows is an empty answer.

    Rows come under our column names. Raises UserError for what is missing, malformed or refused,
    Retry where the network is at fault.
    """
    return Splits(data).rows(split)


def train_source(data: LlmData) -> Source:
    return Source(data.source, data.subset, data.revision, data.split)


def eval_source(data: LlmData) -> Source | None:
    """Where the held-out rows have a place of their own; None where they have not."""
    if data.eval_source is not None:
        same = data.eval_source == data.source
        revision = data.revision if same else None
        split = data.eval_split or "test"
        return Source(data.eval_source, data.subset if same else None, revision, split)
    if data.eval_split is None:
        return None
    source = Source(data.source, data.subset, data.revision, data.eval_split)
    if source.is_local:
        raise UserError(
            f"data.eval_split is {data.eval_split!r}, but {data.source} is a local source, which "
            "has no splits; name the held-out file in data.eval_source, or set data.eval_rows"
        )
    return source


@dataclass
class Splits:
    """The splits of one data section, each source read once and only when it is asked for."""

    data: LlmData
    _opened: dict[Source, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A digest of what the rows hold, without reading local rows one by one."""
        sources = [train_source(self.data), eval_source(self.data)]
        return " ".join(self._digest(source) for source in sources if source is not None)

    def rows(self, split: Split) -> Rows:
        """The rows of one split; see `load_rows`."""
        own = eval_source(self.data)
        if split == "eval" and own is not None:
            table = self._table(own)
            return Rows(table, range(len(table)), table.bad)
        if split == "eval" and self.data.eval_rows == 0:
            return Rows(_NoTable(), range(0))
        table = self._table(train_source(self.data))
        if own is not None or self.data.eval_rows == 0:
            return Rows(table, range(len(table)), table.bad)
        held = held_out(len(table), self.data.eval_rows)
        return Rows(table, held) if split == "eval" else _all_but(table, held)

    def _digest(self, source: Source) -> str:
        if source.is_local:
            return local_rows.fingerprint(source.path)
        return self._hub(source).fingerprint

    def _table(self, source: Source) -> Table:
        if not source.is_local:
            return self._hub(source)
        if source not in self._opened:
            self._opened[source] = _LocalTable(self.data, source.path)
        found: _LocalTable = self._opened[source]
        return found

    def _hub(self, source: Source) -> "_HubTable":
        if source not in self._opened:
            self._opened[source] = _HubTable(self.data, source)
        found: _HubTable = self._opened[source]
        return found


def held_out(total: int, count: int) -> list[int]:
    """Numbers of `count` rows, one from each equal part of `total`; always the same ones.

    They do not depend on the training seed: runs with other seeds are measured on the same rows.
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
    """The other rows, without those that say the same as a held-out one."""
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


class _NoTable:
    """No rows at all."""

    def __init__(self) -> None:
        self.bad: list[str] = []

    def __len__(self) -> int:
        return 0

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return []

    def place(self, number: int) -> str:
        raise IndexError(number)


class _LocalTable:
    """Rows of local files."""

    def __init__(self, data: LlmData, path: Path) -> None:
        self._names = {data.column(name): name for name in COLUMNS[data.format]}
        types = {theirs: _TYPES[ours] for theirs, ours in self._names.items()}
        self._rows = local_rows.read_rows(path, types, data.max_bad_rows)
        self.bad = [str(row) for row in self._rows.bad]

    def __len__(self) -> int:
        return len(self._rows.rows)

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        rows, names = self._rows.rows, self._names.items()
        return [{ours: rows[number][theirs] for theirs, ours in names} for number in numbers]

    def place(self, number: int) -> str:
        return self._rows.place(number)


class _HubTable:
    """Rows of one split of a data set on the hub, memory-mapped from the cache."""

    def __init__(self, data: LlmData, source: Source) -> None:
        self.bad: list[str] = []
        self._source = source
        dataset = _download(source)
        self.fingerprint = _fingerprint(dataset, source)
        names = {data.column(name): name for name in COLUMNS[data.format]}
        missing = [theirs for theirs in names if theirs not in dataset.column_names]
        if missing:
            raise _missing_column(source, names[missing[0]], missing[0], dataset.column_names)
        self._dataset = dataset.select_columns(list(names))
        self._names = names

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        columns = self._dataset[list(numbers)]
        ours = list(self._names.values())
        values = [columns[theirs] for theirs in self._names]
        return [dict(zip(ours, row, strict=True)) for row in zip(*values, strict=True)]

    def place(self, number: int) -> str:
        subset = f"/{self._source.subset}" if self._source.subset else ""
        return f"{self._source.name}{subset}[{self._source.split}]:{number}"


def _download(source: Source) -> Any:
    """The split, from the hub or from the cache where there is no network."""
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
                "set data.subset, data.split and data.eval_split to what the data set has"
            ) from error


@contextmanager
def _only_cached(offline: bool) -> Iterator[None]:
    """Keep `datasets` from asking a hub that does not answer: it would try for half a minute."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _fingerprint(dataset: Any, source: Source) -> str:
    """A digest of the cache's files, whose folders carry the version and commit of the data."""
    names = ["/".join(Path(one["filename"]).parts[-5:]) for one in dataset.cache_files]
    told = repr((source, len(dataset), names))
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _missing_column(source: Source, ours: str, theirs: str, found: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(theirs, found, n=1)
    hint = f"map it as data.columns: {{{ours}: {near[0] if near else 'NAME'}}}"
    return UserError(
        f"{source.name}: expected a column {theirs!r}, found {', '.join(found)}; {hint}"
    )


__all__ = ["Rows", "Source", "Split", "Splits", "Table", "held_out", "load_rows"]
