"""The list of runs: its columns, their order, and the search in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workloads.monitor.numbers import counted, date_text, number_text, span_text
from workloads.monitor.reading.alerts import Alert, alerts
from workloads.monitor.reading.snapshot import LOST, Snapshot
from workloads.run.events import Event

SortKey = float | str | None


@dataclass(frozen=True)
class RunColumn:
    """A column: its text and sort key for a run; runs without a key come last."""

    title: str
    text: Callable[[Snapshot], str]
    key: Callable[[Snapshot], SortKey]
    is_number: bool = False


def _steps(snapshot: Snapshot) -> str:
    return f"{snapshot.step:,}" + (f"/{snapshot.steps:,}" if snapshot.steps else "")


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)


COLUMNS = (
    RunColumn("run", lambda run: run.name, lambda run: run.name),
    RunColumn("phase", lambda run: run.phase, lambda run: run.phase),
    RunColumn("step", _steps, lambda run: float(run.step), True),
    RunColumn("loss", lambda run: _number(run.loss), lambda run: run.loss, True),
    RunColumn("held-out", lambda run: _number(run.held_out), lambda run: run.held_out, True),
    RunColumn("started", lambda run: date_text(run.started), lambda run: run.started),
    RunColumn(
        "duration",
        lambda run: "" if run.elapsed is None else span_text(run.elapsed),
        lambda run: run.elapsed,
        True,
    ),
)


def first_alert(snapshot: Snapshot) -> Alert | None:
    """The note on a run in the list: its worst alert that matters there."""
    if snapshot.reading is not None:
        return Alert(f"reading {snapshot.reading:.0%}")
    if snapshot.active or snapshot.phase in (Event.FAILED, LOST):
        return next(iter(alerts(snapshot)), None)
    return None


def older_runs(count: int) -> str:
    """Sentence on the runs that a list leaves out."""
    return f"{counted(count, 'older run')} not listed; `tatara monitor NAME` shows one"


def search_text(snapshot: Snapshot) -> str:
    """All texts of a run that a search covers."""
    alert = first_alert(snapshot)
    facts = (
        snapshot.name,
        snapshot.phase,
        snapshot.workload,
        snapshot.model,
        snapshot.summary,
        snapshot.reason,
        date_text(snapshot.started),
        alert.text if alert else "",
    )
    return " ".join(facts).lower()


def search(runs: Sequence[Snapshot], query: str) -> list[Snapshot]:
    """The runs whose texts hold every word of the query."""
    wanted = query.lower().split()
    return [run for run in runs if all(word in search_text(run) for word in wanted)]


def sort(runs: Sequence[Snapshot], title: str, descending: bool) -> list[Snapshot]:
    """Sort runs by a column; those without a key come last in both directions."""
    column = next(column for column in COLUMNS if column.title == title)
    known = [run for run in runs if column.key(run) is not None]
    rest = [run for run in runs if column.key(run) is None]
    return [*sorted(known, key=column.key, reverse=descending), *rest]  # type: ignore[arg-type]
