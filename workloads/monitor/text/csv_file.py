"""The numbers of runs as a table for a spreadsheet, one line for each logged step."""

import csv
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from workloads.errors import UserError
from workloads.monitor.reading.follow import Follower, Row, whole
from workloads.run import Run
from workloads.run.integrity import write_atomically

_FIRST = ("run", "step", "epoch", "time", "loss", "eval_loss")
_WHOLE_FILE = 1 << 62


def write(runs: Sequence[Run], output: Path) -> Path:
    """Write training and held-out rows of runs as CSV.

    With several runs, the first column names the run. Raises UserError where nothing was logged
    yet, and
    where the file cannot be written.
    """
    several = len(runs) > 1
    rows = [({"run": run.id} if several else {}) | row for run in runs for row in _rows(run)]
    if not rows:
        ids = ", ".join(run.id for run in runs)
        raise UserError(f"{ids}: expected a logged step, found none; wait for the first one")
    found = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in _FIRST if name in found]
    columns += [name for name in found if name not in _FIRST]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text.getvalue())
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written: {error.strerror}; name another file with --output"
        ) from None
    return output


def _rows(run: Run) -> Iterator[Row]:
    """Rows by step; a step repeated after a restart counts as its last repetition."""
    found: dict[int, Row] = {}
    for path in (run.metrics, run.evaluations):
        latest: dict[int, Row] = {}
        newest = -1
        for row in Follower(path, lambda: None).rows(_WHOLE_FILE):
            step = whole(row.get("step"))
            if step is None:
                continue
            if step <= newest:  # a restart: later steps from before it are not in the model
                latest = {known: kept for known, kept in latest.items() if known < step}
            latest[step], newest = row | {"step": step}, step
        for step, row in latest.items():
            found[step] = found.get(step, {}) | _columns(row)
    for step in sorted(found):
        yield found[step]


def _columns(row: Row) -> Row:
    """The numbers of a row, with its time (UTC) in the form of spreadsheets."""
    numbers = {
        name: value
        for name, value in row.items()
        if name not in ("time", "monotonic", "batches") and not isinstance(value, dict | list)
    }
    written = row.get("time")
    if isinstance(written, int | float):
        numbers["time"] = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(written))
    return numbers
