"""How fast, and how tightly, are rows packed into sequences? Beside TRL's `bfd` strategy.

    python -m bench.packing            # prints the figures
    python -m bench.packing --write    # and writes docs/benchmarks/packing.md

Only the packing is timed: ours gets lengths and returns groups of rows, and TRL gets rows whose
tokens are nulls, which weigh nothing when it moves them. It packs the batches of 1000 rows that
its `dataset.map` hands it by default; all rows at once is the tightest packing it can give.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from trl.data_utils import _pack_bfd

from bench._pair import Side, benchmark_parser, facts, measure, table, write_page
from workloads.data.packing import pack

CAPACITY = 4096
# Mean and deviation of the logarithm: short chats, ordinary fine-tuning rows, long documents.
SHAPES = [(5.5, 0.8), (6.0, 0.6), (7.0, 0.5)]
TRL_BATCH = 1000


def main() -> None:
    parser = benchmark_parser("packing", __doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    arguments = parser.parse_args()
    tables = [_compare(shape, arguments.rows, arguments.rounds) for shape in SHAPES]
    known = facts(
        ["numpy", "trl", "pyarrow"],
        ["workloads/data/packing.py", "bench/packing.py", "bench/_pair.py"],
        arguments.machine,
    )
    print(f"\n{known}")
    if arguments.write:
        print(f"wrote {write_page('packing', [*_introduction(arguments.rows), *tables, known])}")


def _introduction(rows: int) -> list[str]:
    return [
        "# Packing rows into sequences",
        f"{rows:,} rows of log-normal length, cut at {CAPACITY}, into sequences of {CAPACITY} "
        "tokens: `workloads.data.packing.pack` beside TRL's `bfd`, in one process, turn by turn, "
        "after checking that all put every row into one sequence and overfill none. Only the "
        "packing is timed: TRL gets tokens that weigh nothing. In batches of 1000 rows is how its "
        "`dataset.map` runs by default; all rows at once is the tightest it can do.",
        "Efficiency is ceil(sum / capacity) divided by the number of sequences. The goals are "
        "0.999 and ten times TRL's speed.",
        "Run it: `python -m bench.packing --write`.",
    ]


def _compare(shape: tuple[float, float], rows: int, rounds: int) -> str:
    draws = np.random.default_rng(0).lognormal(*shape, rows)
    lengths = np.clip(draws, 1, CAPACITY).astype(np.int64)
    weightless = _weightless_rows(lengths)
    sides = [
        Side("ours", lambda: pack(lengths, CAPACITY)),
        Side(f"TRL, batches of {TRL_BATCH}", lambda: _trl(weightless, TRL_BATCH)),
        Side("TRL, all rows at once", lambda: _trl(weightless, rows)),
    ]
    efficiency: dict[str, str] = {}

    def check(outputs: Sequence[Any]) -> None:
        groups, *tables = outputs
        packings = [[lengths[group] for group in groups], *map(_lengths_of, tables)]
        best = -(-int(lengths.sum()) // CAPACITY)
        for side, packing in zip(sides, packings, strict=True):
            _assert_whole(packing, lengths)
            efficiency[side.name] = f"{best / len(packing):.4f}"

    timed = measure(sides, check, rounds)
    text = (
        f"## Log-mean {shape[0]}, log-deviation {shape[1]}: {lengths.mean():.0f} tokens a row\n\n"
        + table(timed, rows, "sequences/s", ("efficiency", efficiency))
    )
    print(text, flush=True)
    return text


def _weightless_rows(lengths: np.ndarray) -> pa.Table:
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
    return pa.table({"input_ids": column})


def _trl(rows: pa.Table, batch: int) -> pa.Table:
    starts = range(0, len(rows), batch)
    return pa.concat_tables([_pack_bfd(rows.slice(start, batch), CAPACITY) for start in starts])


def _lengths_of(packed: pa.Table) -> list[np.ndarray]:
    """The lengths of the rows in each of TRL's sequences."""
    lists = packed["seq_lengths"].combine_chunks()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy())
    return np.split(pc.list_flatten(lists).to_numpy(), ends[:-1])


def _assert_whole(packing: list[np.ndarray], lengths: np.ndarray) -> None:
    assert max(int(sequence.sum()) for sequence in packing) <= CAPACITY
    assert np.array_equal(np.sort(np.concatenate(packing)), np.sort(lengths))


if __name__ == "__main__":
    main()
