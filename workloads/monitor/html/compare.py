"""Several runs over each other: curves, results, and the settings that differ."""

from collections.abc import Iterator, Sequence

from workloads.monitor.html.evaluations import scores_of
from workloads.monitor.html.page import esc, phase, table
from workloads.monitor.html.svg import COLOURS, Line, Size, chart
from workloads.monitor.numbers import date_text, number_text, span_text
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.curve import Point
from workloads.monitor.reading.metric_names import metric_label, metric_names, metric_points
from workloads.monitor.reading.settings import (
    RunFacts,
    differing_environment,
    differing_settings,
)
from workloads.monitor.reading.snapshot import Snapshot

MOST = COLOURS  # runs that can be distinguished by colour
_SHOWN = 12  # charts


def metrics_of(runs: Sequence[Snapshot]) -> list[str]:
    """Metrics of at least one run; the held-out loss has a chart of its own here."""
    every = {name: curve for run in runs for name, curve in run.curves.items() if len(curve) > 1}
    names = metric_names(every)
    if "eval_loss" in every:
        names.insert(1 if "loss" in names else 0, "eval_loss")
    return names[:_SHOWN]


def legend(runs: Sequence[Snapshot]) -> str:
    """The runs' names in their colours."""
    keys = (
        f'<button type="button" class="c{at}" title="hide or show its curves">'
        f'<span class="swatch"></span><bdi>{esc(run.name)}</bdi> {phase(run)}</button>'
        for at, run in enumerate(runs)
    )
    return f'<h1>{len(runs)} runs</h1><div class="legend">{"".join(keys)}</div>'


def warnings(runs: Sequence[Snapshot], notes: Sequence[str]) -> str:
    """Notes on the page itself, progress of reading, and alerts of the runs."""
    found = [(note, False) for note in notes]
    found += [
        (f"{run.name}: reading {run.reading:.0%}; its curves are not whole yet", False)
        for run in runs
        if run.reading is not None
    ]
    found += [(f"{run.name}: {alert.text}", alert.bad) for run in runs for alert in alerts(run)]
    return "".join(
        f'<div class="warning{" bad" if bad else ""}">{esc(text)}</div>' for text, bad in found
    )


def charts(runs: Sequence[Snapshot], values: bool = False) -> str:
    """One chart a metric, with one line a run."""
    figures = []
    for name in metrics_of(runs):
        lines = [Line(_points(run, name), run.name) for run in runs]
        size = Size() if name == "loss" else Size(560, 230)
        drawn = chart(f"{metric_label(name)} of several runs", lines, (), size, values=values)
        title = f"<figcaption><h3>{esc(metric_label(name))}</h3></figcaption>"
        figures.append(f"<figure{' class=large' if name == 'loss' else ''}>{title}{drawn}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _points(run: Snapshot, name: str) -> list[Point]:
    return metric_points(run.curves, name)


def results(runs: Sequence[RunFacts]) -> str:
    """Results of the runs, side by side."""
    rows = [[esc(label), *map(esc, texts)] for label, texts in _results(runs) if any(texts)]
    return f"<h2>Results</h2>{table(_head(runs), rows, right=range(1, len(runs) + 1))}"


def _head(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    return ("", *(run.snapshot.name for run in runs))


def _results(runs: Sequence[RunFacts]) -> Iterator[tuple[str, list[str]]]:
    shots = [run.snapshot for run in runs]
    yield "result", [f"{shot.phase} {shot.reason}".strip() for shot in shots]
    yield "steps", [f"{shot.step:,}" for shot in shots]
    yield "loss", [_number(shot.loss) for shot in shots]
    yield "held-out loss", [_number(shot.held_out) for shot in shots]
    yield "lowest held-out loss", [_lowest(shot, "eval_loss") for shot in shots]
    yield "reward", [_newest(shot, "reward") for shot in shots]
    units = dict.fromkeys(shot.unit for shot in shots if shot.unit)
    for unit in units:
        yield unit, [_number(shot.speed) if shot.unit == unit else "" for shot in shots]
    yield "seconds a step", [_number(shot.seconds_per_step) for shot in shots]
    yield "started", [date_text(shot.started) for shot in shots]
    yield "duration", ["" if shot.elapsed is None else span_text(shot.elapsed) for shot in shots]
    yield "restarts", [str(shot.restarts) if shot.restarts else "" for shot in shots]
    scores = [scores_of(run.run) for run in runs]
    for name in dict.fromkeys(name for found in scores for name in found):
        yield name, [found.get(name, "") for found in scores]


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _newest(run: Snapshot, name: str) -> str:
    curve = run.curves.get(name)
    return _number(curve.last) if curve else ""


def _lowest(run: Snapshot, name: str) -> str:
    points = _points(run, name)
    if not points:
        return ""
    lowest = min(points, key=lambda point: point.low)
    return f"{number_text(lowest.low)} at step {lowest.step:,}"


def settings(runs: Sequence[RunFacts]) -> str:
    """Table of settings that differ between runs."""
    title = "<h2>Settings that differ</h2>"
    body = _differences(runs, differing_settings(runs))
    return title + (body or '<p class="soft">none: all runs have the same settings</p>')


def environment(runs: Sequence[RunFacts]) -> str:
    """Table of differing code, packages and machines; empty without a difference."""
    body = _differences(runs, differing_environment(runs))
    return f"<h2>Code, packages and machines that differ</h2>{body}" if body else ""


def _differences(runs: Sequence[RunFacts], found: list[tuple[str, list[str]]]) -> str:
    rows = (
        [f"<code>{esc(name)}</code>", *(f"<code>{esc(text)}</code>" for text in texts)]
        for name, texts in found
    )
    return table(_head(runs), rows)


def parts(runs: Sequence[RunFacts], notes: Sequence[str] = ()) -> dict[str, str]:
    """The view of several runs, except charts."""
    shots = [run.snapshot for run in runs]
    return {
        "heading": legend(shots),
        "warnings": warnings(shots, notes),
        "results": results(runs),
        "settings": settings(runs),
        "environment": environment(runs),
    }
