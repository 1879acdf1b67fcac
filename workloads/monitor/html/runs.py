"""The list of all runs as HTML."""

from collections.abc import Sequence

from workloads.monitor.html.page import esc, phase
from workloads.monitor.reading.run_table import COLUMNS, RunColumn, first_alert, search_text
from workloads.monitor.reading.snapshot import Snapshot


def listing(runs: Sequence[Snapshot], names: Sequence[str], links: Sequence[str]) -> str:
    """Table of all runs; `names` for requests, `links`: addresses of their pages.

    Keys for sorting and searching are attributes of a row, for the script.
    """
    if not runs:
        return "<p>none yet</p>"
    head = "".join(
        f"<th{' class=n' if column.is_number else ''}>{esc(column.title)}</th>"
        for column in COLUMNS
    )
    rows = (_row(run, name, link) for run, name, link in zip(runs, names, links, strict=True))
    return (
        f'<div class="wide"><table class="runs"><thead><tr><th></th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(run: Snapshot, name: str, link: str) -> str:
    cells = "".join(_cell(column, run, link) for column in COLUMNS)
    alert = first_alert(run)
    bad = " class=down" if alert and alert.bad else ""
    text = esc(alert.text) if alert else ""
    words = f'<td{bad} title="{text}">{text}</td>'
    tick = f'<td><input type="checkbox" aria-label="compare {esc(run.name)}"></td>'
    found = f'data-run="{esc(name)}" data-text="{esc(search_text(run))}"'
    return f"<tr {found}>{tick}{cells}{words}</tr>"


def _cell(column: RunColumn, run: Snapshot, link: str) -> str:
    key = column.key(run)
    sorted_by = "" if key is None else f' data-key="{esc(key)}"'
    text = esc(column.text(run))
    if column.title == "run":
        text = f'<a href="{esc(link)}" title="{esc(run.model or run.summary)}">{text}</a>'
    elif column.title == "phase":
        text = phase(run)
    return f"<td{' class=n' if column.is_number else ''}{sorted_by}>{text}</td>"
