"""One page that tells a run: curves, scores, settings, where and on what it ran, what happened.

A file that stands alone, without scripts: it can be kept, sent, or opened years later.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.monitor.html import evaluations, gallery, page
from workloads.monitor.html.page import Row, esc, table, tile
from workloads.monitor.html.style import CSS
from workloads.monitor.numbers import byte_text, number_text, span_text
from workloads.monitor.reading.follow import number, read_object
from workloads.monitor.reading.record import Event, checkpoints
from workloads.monitor.reading.snapshot import Snapshot, Watch
from workloads.run import Run
from workloads.run.integrity import write_atomically

_POINTS = 1000
_EVENTS = 500
_BAD_ROWS = 200
_CHARTS = 24
# No script runs and nothing is fetched, even if a text should slip through as markup.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Story:
    """Everything that the sections draw from."""

    now: Snapshot
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def run(self) -> Run:
        return self.now.run


def read(run: Run) -> Story:
    """Read all there is of a run, which may be going on or never have ended."""
    watch = Watch(run, capacity=_POINTS, most_events=_EVENTS)
    now = watch.look()
    while now.reading is not None:
        now = watch.look()
    dump = read_object(run.path / "config.json")
    manifest = read_object(run.path / "manifest.json")
    return Story(now, _mapping(dump.get("config")), _mapping(dump.get("provenance")), manifest)


def write(run: Run, out: Path | None = None) -> Path:
    """Write the page, by default to `<run>/report.html`; UserError where that cannot be."""
    path = out or run.path / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(read(run)))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; name another file with --out"
        ) from None
    return path


def render(story: Story) -> str:
    """The page; a section that has nothing to say is left out."""
    parts = [page.heading(story.now), page.warnings(story.now), _opening(story)]
    for title, body in SECTIONS:
        if text := "".join(body(story)):
            parts.append(f"<section><h2>{esc(title)}</h2>{text}</section>")
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(story.now.name)} · tatara report</title><style>{CSS}</style></head><body>"
        f"{''.join(parts)}<footer>Written {esc(made)} by <code>tatara report</code> from "
        f"<code>{esc(story.run.path)}</code>.</footer></body></html>\n"
    )


def _opening(story: Story) -> str:
    now = story.now
    lines = [f"<p>{esc(now.summary)}</p>"] if now.summary else []
    if now.active:
        lines.append('<p class="soft">The run was still going on when this was written.</p>')
    tiles = [tile("result", f"{now.phase}{': ' + now.reason if now.reason else ''}")]
    tiles += [tile(label, text) for label, text in _results(now)]
    return f'{"".join(lines)}<div class="tiles">{"".join(tiles)}</div>'


def _results(now: Snapshot) -> Iterator[tuple[str, str]]:
    for name, label in (("loss", "loss"), ("eval_loss", "held-out loss"), ("reward", "reward")):
        points = list(now.curves.get(name, ()))
        if len(points) > 1:
            yield label, f"{number_text(points[0].mean)} → {number_text(points[-1].mean)}"
    if now.speed is not None:
        yield now.unit, number_text(now.speed)
    if now.seconds_per_step is not None:
        yield "seconds a step", number_text(now.seconds_per_step)
    if now.mfu is not None:
        yield "MFU", f"{now.mfu:.1%}"
    if now.elapsed is not None:
        yield "duration", span_text(now.elapsed)
    if now.restarts:
        yield "restarts", str(now.restarts)


def _curves(story: Story) -> Iterator[str]:
    yield page.charts(story.now, most=_CHARTS)


def _evaluation(story: Story) -> Iterator[str]:
    yield from evaluations.section(story.run)
    yield from gallery.pictures(story.run)


def _rollouts(story: Story) -> Iterator[str]:
    yield from gallery.rollouts(story.run)


def _data(story: Story) -> Iterator[str]:
    """What preparing the data found; parts with the same facts stand side by side."""
    data = _mapping(story.manifest.get("data"))
    parts = {name: value for name, value in data.items() if isinstance(value, dict)}
    plain = {name: value for name, value in data.items() if name not in parts}
    yield table(("", ""), _facts(plain))
    names = list(dict.fromkeys(fact for part in parts.values() for fact in part))
    rows = [
        [esc(name.replace("_", " ")), *(esc(_value(part.get(name))) for part in parts.values())]
        for name in names
        if not any(isinstance(part.get(name), list | dict) for part in parts.values())
    ]
    yield table(("", *parts), rows, right=range(1, len(parts) + 1))
    for part, facts in parts.items():
        for name, value in facts.items():
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


def _settings(story: Story) -> Iterator[str]:
    """What was set first; what was left as it is, folded."""
    chosen: list[list[str]] = []
    left: list[list[str]] = []
    for name, value in _flat(story.config):
        source = str(story.provenance.get(name, ""))
        row = [f"<code>{esc(name)}</code>", f"<code>{esc(_value(value))}</code>", esc(source)]
        (left if source in ("default", "") else chosen).append(row)
    yield table(("setting", "value", "from"), chosen)
    if left:
        more = table(("setting", "value", "from"), left)
        yield f"<details><summary>{len(left)} settings at their defaults</summary>{more}</details>"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _environment(story: Story) -> Iterator[str]:
    """The manifest but for the data: where, with what, from which code."""
    manifest = {name: value for name, value in story.manifest.items() if name != "data"}
    versions, git = _mapping(manifest.pop("versions", None)), _mapping(manifest.pop("git", None))
    if git:
        changed = " with changes that are not committed" if git.get("changed") else ""
        manifest["commit"] = f"{git.get('commit', 'unknown')}{changed}"
    rows = ([esc(name), f"<code>{esc(version)}</code>"] for name, version in versions.items())
    yield f'<div class="columns">{table(("", ""), _facts(manifest))}'
    yield f"{table(('package', 'version'), rows)}</div>"


def _ranks(story: Story) -> Iterator[str]:
    yield page.ranks(story.now)


def _checkpoints(story: Story) -> Iterator[str]:
    rows = [
        Row(
            [
                esc(f"{one.step:,}"),
                f"<code>{esc(one.name)}</code>",
                esc(byte_text(one.size) if one.size is not None else "not whole"),
            ],
            "" if one.size is not None else "bad",
        )
        for one in checkpoints(story.run)
    ]
    yield table(("step", "folder", "size"), rows, right=(0, 2))
    if story.run.final.is_dir():
        files = (path for path in sorted(story.run.final.iterdir()) if path.is_file())
        final = ([f"<code>final/{esc(one.name)}</code>", esc(_size(one))] for one in files)
        yield table(("exported model", "size"), final, right=(1,))


def _events(story: Story) -> Iterator[str]:
    rows = (_event(one) for one in story.now.events)
    yield table(("time", "event", ""), rows)


def _event(event: Event) -> Row:
    when = "" if event.time is None else _date(event.time)
    bad = event.name in ("failed", "oom", "nonfinite", "checkpoint failed", "checkpoint damaged")
    return Row([esc(when), esc(event.name), esc(event.text(" · "))], "bad" if bad else "")


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
            yield [esc(name.replace("_", " ")), esc(_value(value))]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(inner) for inner in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items()) or "-"
    if value is None:
        return "-"
    found = number(value)
    if isinstance(value, int) and found is not None:
        return f"{value:,}"
    return str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


Section = Callable[[Story], Iterator[str]]
# A further section is a function and a line here.
SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Curves", _curves),
    ("Evaluation", _evaluation),
    ("Rollouts", _rollouts),
    ("Data", _data),
    ("Settings", _settings),
    ("Environment", _environment),
    ("Ranks", _ranks),
    ("Checkpoints", _checkpoints),
    ("Events", _events),
)
