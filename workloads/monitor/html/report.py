"""One page on a run: curves, scores, settings, machine, data and events.

A self-contained file without scripts: it can be kept, sent, or opened years later.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.monitor.html import compare, evaluations, gallery, memory, page
from workloads.monitor.html.assets import asset
from workloads.monitor.html.page import TableRow, esc, table, tile
from workloads.monitor.numbers import byte_text, number_text, span_text
from workloads.monitor.reading.record import BAD_EVENTS, RunEvent, checkpoints
from workloads.monitor.reading.settings import RunFacts, flat, mapping, read_facts, value_text
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run
from workloads.run.integrity import write_atomically

_BAD_ROWS = 200
_CHARTS = 24
_SAMPLED = 6  # steps of a held-out question that are shown
# No script runs and nothing is loaded, even if a text should slip through as markup.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


def write(runs: Sequence[Run], output: Path) -> Path:
    """Write the page of one run, or of several side by side; raises UserError on failure."""
    facts = [read_facts(run) for run in runs]
    page_text = render(facts[0]) if len(facts) == 1 else render_comparison(facts)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page_text)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written: {error.strerror}; name another file with --output"
        ) from None
    return output


def render(facts: RunFacts) -> str:
    """The page, without empty sections."""
    parts = [page.heading(facts.snapshot), page.warnings(facts.snapshot), _opening(facts)]
    for title, body in SECTIONS:
        if text := "".join(body(facts)):
            parts.append(f"<section><h2>{esc(title)}</h2>{text}</section>")
    return _document(facts.snapshot.name, parts, [facts])


def render_comparison(runs: Sequence[RunFacts]) -> str:
    """One page of several runs."""
    shots = [run.snapshot for run in runs]
    parts = compare.parts(runs)
    curves = f"<section><h2>Curves</h2>{compare.charts(shots, values=True)}</section>"
    rest = (parts[name] for name in ("results", "settings", "environment"))
    body = [parts["heading"], parts["warnings"], curves, *rest]
    return _document(" and ".join(shot.name for shot in shots), body, runs)


def _document(title: str, parts: Iterable[str], runs: Sequence[RunFacts]) -> str:
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    sources = ", ".join(f"<code>{esc(run.run.path)}</code>" for run in runs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)} · tatara report</title><style>{asset('style.css')}</style></head>"
        f"<body>{''.join(parts)}<footer>Written {esc(made)} by <code>tatara report</code> from "
        f"{sources}.</footer></body></html>\n"
    )


def _opening(facts: RunFacts) -> str:
    snapshot = facts.snapshot
    lines = [f"<p>{esc(snapshot.summary)}</p>"] if snapshot.summary else []
    if snapshot.active:
        lines.append('<p class="soft">The run was still going on when this was written.</p>')
    tiles = [tile("result", f"{snapshot.phase}{': ' + snapshot.reason if snapshot.reason else ''}")]
    tiles += [tile(label, text) for label, text in _results(snapshot)]
    return f'{"".join(lines)}<div class="tiles">{"".join(tiles)}</div>'


def _results(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    for name, label in (("loss", "loss"), ("eval_loss", "held-out loss"), ("reward", "reward")):
        points = list(snapshot.curves.get(name, ()))
        if points:
            first, last = number_text(points[0].mean), number_text(points[-1].mean)
            # With one value there is no change: nothing was measured before.
            yield label, last if len(points) == 1 else f"{first} → {last}"
    if snapshot.speed is not None:
        yield snapshot.unit, number_text(snapshot.speed)
    if snapshot.seconds_per_step is not None:
        yield "seconds a step", number_text(snapshot.seconds_per_step)
    if snapshot.mfu is not None:
        yield "MFU", f"{snapshot.mfu:.1%}"
    if snapshot.elapsed is not None:
        yield "duration", span_text(snapshot.elapsed)
    if snapshot.restarts:
        yield "restarts", str(snapshot.restarts)


def _curves(facts: RunFacts) -> Iterator[str]:
    yield page.charts(facts.snapshot, most=_CHARTS, values=True)


def _evaluation(facts: RunFacts) -> Iterator[str]:
    yield from evaluations.section(facts.run)
    yield from gallery.images(facts.run)


def _samples(facts: RunFacts) -> Iterator[str]:
    yield evaluations.sampled(facts.run, _SAMPLED)


def _rollouts(facts: RunFacts) -> Iterator[str]:
    yield from gallery.rollouts(facts.run)


def _data(facts: RunFacts) -> Iterator[str]:
    """Report of data preparation; parts with the same facts are side by side."""
    data = mapping(facts.manifest.get("data"))
    parts = {name: value for name, value in data.items() if isinstance(value, dict)}
    plain = {name: value for name, value in data.items() if name not in parts}
    yield table(("", ""), _facts(plain))
    names = list(dict.fromkeys(fact for part in parts.values() for fact in part))
    rows = [
        [esc(name.replace("_", " ")), *(esc(value_text(part.get(name))) for part in parts.values())]
        for name in names
        if not any(isinstance(part.get(name), list | dict) for part in parts.values())
    ]
    yield table(("", *parts), rows, right=range(1, len(parts) + 1))
    for part, found in parts.items():
        for name, value in found.items():
            if isinstance(value, list) and value:
                yield _list(f"{part}: {name}", value)


def _list(title: str, values: list[Any]) -> str:
    lines = "\n".join(str(value) for value in values[:_BAD_ROWS])
    more = len(values) - _BAD_ROWS
    tail = f"\n… and {more:,} more" if more > 0 else ""
    summary = f"{title.replace('_', ' ')} ({len(values):,})"
    return (
        f"<details open><summary>{esc(summary)}</summary><pre>{esc(lines + tail)}</pre></details>"
    )


def _settings(facts: RunFacts) -> Iterator[str]:
    """Settings that were set, then the defaults, folded."""
    chosen: list[list[str]] = []
    left: list[list[str]] = []
    for name, value in flat(facts.config):
        source = str(facts.provenance.get(name, ""))
        row = [f"<code>{esc(name)}</code>", f"<code>{esc(value_text(value))}</code>", esc(source)]
        (left if source in ("default", "") else chosen).append(row)
    yield table(("setting", "value", "from"), chosen)
    if left:
        more = table(("setting", "value", "from"), left)
        yield f"<details><summary>{len(left)} settings at their defaults</summary>{more}</details>"


def _environment(facts: RunFacts) -> Iterator[str]:
    """The manifest without the data: code, packages and machine."""
    manifest = {
        name: value for name, value in facts.manifest.items() if name not in ("data", "memory")
    }
    versions, git = mapping(manifest.pop("versions", None)), mapping(manifest.pop("git", None))
    if git:
        changed = " with changes that are not committed" if git.get("changed") else ""
        manifest["commit"] = f"{git.get('commit', 'unknown')}{changed}"
    rows = ([esc(name), f"<code>{esc(version)}</code>"] for name, version in versions.items())
    yield f'<div class="columns">{table(("", ""), _facts(manifest))}'
    yield f"{table(('package', 'version'), rows)}</div>"


def _ranks(facts: RunFacts) -> Iterator[str]:
    yield page.ranks(facts.snapshot) if facts.snapshot.ranks else ""


def _log(facts: RunFacts) -> Iterator[str]:
    """The end of the log beside the error of a run that failed."""
    yield page.error(facts.snapshot)


def _checkpoints(facts: RunFacts) -> Iterator[str]:
    rows = [
        TableRow(
            [
                esc(f"{saved.step:,}"),
                f"<code>{esc(saved.name)}</code>",
                esc(byte_text(saved.size) if saved.size is not None else "not whole"),
            ],
            "" if saved.size is not None else "bad",
        )
        for saved in checkpoints(facts.run)
    ]
    yield table(("step", "folder", "size"), rows, right=(0, 2))
    if facts.run.final.is_dir():
        files = (path for path in sorted(facts.run.final.iterdir()) if path.is_file())
        final = ([f"<code>final/{esc(path.name)}</code>", esc(_size(path))] for path in files)
        yield table(("exported model", "size"), final, right=(1,))


def _events(facts: RunFacts) -> Iterator[str]:
    rows = (_event(event) for event in facts.snapshot.events)
    yield table(("time", "event", ""), rows)


def _event(event: RunEvent) -> TableRow:
    when = "" if event.time is None else _date(event.time)
    bad = event.name in BAD_EVENTS
    return TableRow([esc(when), esc(event.name), esc(event.text(" · "))], "bad" if bad else "")


def _date(when: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, OSError, ValueError):
        return str(when)


def _size(path: Path) -> str:
    try:
        return byte_text(path.stat().st_size)
    except OSError:
        return "-"


def _facts(values: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in values.items():
        if value not in (None, "", [], {}):
            yield [esc(name.replace("_", " ")), esc(value_text(value))]


Section = Callable[[RunFacts], Iterator[str]]
# A further section is a function and a line here.
SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Error", _log),
    ("Curves", _curves),
    ("Evaluation", _evaluation),
    ("Held-out questions during training", _samples),
    ("Rollouts", _rollouts),
    ("Data", _data),
    ("Settings", _settings),
    ("Memory", memory.section),
    ("Environment", _environment),
    ("Ranks", _ranks),
    ("Checkpoints", _checkpoints),
    ("Events", _events),
)
