"""The list of all runs as HTML."""

from collections.abc import Sequence

from workloads.monitor.html.page import esc, phase
from workloads.monitor.reading.run_table import (
    COLUMNS,
    RunColumn,
    first_alert,
    older_runs,
    search_text,
)
from workloads.monitor.reading.snapshot import Snapshot


def listing(runs: Sequence[Snapshot], names: Sequence[str], links: Sequence[str]) -> str:
    """Table of all runs; `names` for requests, `links`: addresses of their pages.

    Keys for sorting and searching are attributes of a row, for the script.
    """
    if not runs:
        return "<p>none yet</p>"
    head = "".join(
        f"<th{' class=n' if column.is_number else ''}>"
        f'<button type="button">{esc(column.title)}</button></th>'
        for column in COLUMNS
    )
    listed = enumerate(zip(runs, names, links, strict=True))
    rows = (_row(at, run, name, link) for at, (run, name, link) in listed)
    return (
        f'<div class="wide"><table class="runs"><thead><tr><th></th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def older(count: int) -> str:
    """Says that there are runs besides those of the list; empty for none."""
    return f'<p class="soft">{esc(older_runs(count))}</p>' if count else ""


def _row(at: int, run: Snapshot, name: str, link: str) -> str:
    cells = "".join(_cell(column, run, link) for column in COLUMNS)
    alert = first_alert(run)
    bad = " class=down" if alert and alert.bad else ""
    text = esc(alert.text) if alert else ""
    words = f'<td{bad} title="{text}"><span class="note">{text}</span></td>'
    tick = f'<td><input type="checkbox" aria-label="compare {esc(run.name)}"></td>'
    found = f'data-run="{esc(name)}" data-at="{at}" data-text="{esc(search_text(run))}"'
    return f"<tr {found}>{tick}{cells}{words}</tr>"


def _cell(column: RunColumn, run: Snapshot, link: str) -> str:
    key = column.key(run)
    sorted_by = "" if key is None else f' data-key="{esc(key)}"'
    text = esc(column.text(run))
    if column.title == "run":
        text = (
            f'<a href="{esc(link)}" title="{esc(run.model or run.summary)}"><bdi>{text}</bdi></a>'
        )
    elif column.title == "phase":
        text = phase(run)
    kind = " class=n" if column.is_number else ""
    return f'<td{kind}{sorted_by} data-title="{esc(column.title)}">{text}</td>'
