"""The view in a browser: read-only pages on 127.0.0.1, served without other files.

A page on the internet can make a browser on this machine ask 127.0.0.1. It is kept out by a check
of the Host header (against DNS rebinding) and by sending no CORS headers; nothing can be changed
through this server in any case.
"""

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from workloads.errors import EXIT_DONE, UserError
from workloads.monitor.html import compare, page, runs
from workloads.monitor.html.assets import asset
from workloads.monitor.html.server import BoundedHandler, BoundedServer
from workloads.monitor.html.views import Views
from workloads.monitor.numbers import clean
from workloads.monitor.reading import as_json
from workloads.monitor.reading.logs import log_of, log_tail
from workloads.monitor.reading.metric_names import metric_label, metric_points
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run

PORT = 8737
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_LOG = 2000  # lines of a log
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · tatara</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/style.css"></head><body>
<nav><b>tatara</b> <a href="/">all runs</a> {links}<span id="note" role="status"></span></nav>
<main id="view" data-parts="{parts}" data-curves="{curves}" data-most="{most}">{body}</main>
<script type="module" src="/view.js"></script></body></html>
"""
_LIST = '<h1>Runs</h1><div class="tools" id="tools"></div>'
_ASSETS = {
    "/style.css": "text/css",
    "/view.js": "text/javascript",
    "/charts.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}
Answer = tuple[HTTPStatus, str, str]


def name_of(run: Run) -> str:
    return f"{run.path.resolve().parent.name}/{run.id}"


def answer(views: Views, address: str) -> Answer:
    """Status, media type and text for a path with its query; 404 for an unknown one."""
    try:
        url = urlsplit(address)
    except ValueError:  # no address at all, as "http://["
        return _NO_RUN
    fixed: dict[str, Callable[[], Answer]] = {
        "/": lambda: _page("Runs", "/parts", "", _LIST + _sections(_list_parts(views))),
        "/view": lambda: _html(_sections(_list_parts(views))),
        "/parts": lambda: _parts(_list_parts(views), []),
        "/data": lambda: _json(
            {"runs": [as_json.brief(run) for run in views.list.get()], "older": views.older}
        ),
    }
    if url.path in fixed:
        return fixed[url.path]()
    if url.path in _ASSETS:
        return HTTPStatus.OK, _ASSETS[url.path], asset(url.path.removeprefix("/"))
    query = parse_qs(url.query)
    kind, _, name = url.path.removeprefix("/").partition("/")
    if kind in ("compare", "curves") and not name or url.path == "/parts/compare":
        names = list(dict.fromkeys(query.get("run", ())))
        return _several(views, kind, names, _steps(query))
    (run,) = views.find([unquote(name)])
    answers = {"run": _run_page, "view": _run_view, "parts": _run_parts, "data": _run_data}
    if run is None:
        return _NO_RUN
    if kind == "log":
        return _log(views.live(run).get(), query.get("rank", ["0"])[0])
    return answers[kind](views, run) if kind in answers else _NO_RUN


_NO_RUN: Answer = (HTTPStatus.NOT_FOUND, "text/plain", "there is no such run here\n")


def _run_page(views: Views, run: Run) -> Answer:
    name = quote(name_of(run))
    body = _run_sections(views, run)
    links = f'<a href="/?compare={name}">compare …</a> <a href="/data/{name}">JSON</a>'
    return _page(name_of(run), f"/parts/{name}", f"/curves?run={name}", body, links)


def _run_view(views: Views, run: Run) -> Answer:
    return _html(_run_sections(views, run))


def _run_sections(views: Views, run: Run) -> str:
    snapshot = views.live(run).get()
    parts = _parts_of(views, snapshot)
    drawn = page.charts(snapshot)
    titles = list(parts)
    before = titles.index("ranks")
    first, rest = titles[:before], titles[before:]
    return (
        _sections({title: parts[title] for title in first})
        + f'<section id="charts">{drawn}</section>'
        + _sections({title: parts[title] for title in rest})
    )


def _parts_of(views: Views, snapshot: Snapshot) -> dict[str, str]:
    logs = f"/log/{quote(name_of(snapshot.run))}?rank="
    parts = page.parts(snapshot, views.machine.get(), logs)
    asked = views.samples(snapshot.run)
    title = "<h2>Held-out questions during training</h2>"
    return {**parts, "samples": title + asked if asked else ""}


def _run_parts(views: Views, run: Run) -> Answer:
    snapshot = views.live(run).get()
    return _parts(_parts_of(views, snapshot), [snapshot])


def _run_data(views: Views, run: Run) -> Answer:
    return _json(as_json.as_dict(views.live(run).get(), views.machine.get()))


def _several(
    views: Views, kind: str, names: Sequence[str], steps: tuple[float, float] | None
) -> Answer:
    """Several runs: the page, its parts, or the curves of one run or more."""
    found = dict(zip(names, views.find(names), strict=True))
    there = [run for run in found.values() if run is not None]
    if not there:
        return _NO_RUN
    notes = [f"{name}: there is no such run here" for name, run in found.items() if run is None]
    if len(there) > compare.MOST:
        others = ", ".join(map(name_of, there[compare.MOST :]))
        notes.append(f"not shown, as more than {compare.MOST} runs look alike: {others}")
    facts = [views.facts(run) for run in there[: compare.MOST]]
    shots = [run.snapshot for run in facts]
    if kind == "curves":
        return _json(_curves(views, shots, steps))
    parts = compare.parts(facts, notes)
    if kind == "parts":
        return _parts(parts, shots)
    first = {name: parts.pop(name) for name in ("heading", "warnings")}
    drawn = f'<section id="charts">{compare.charts(shots)}</section>'
    query = "&".join(f"run={quote(name)}" for name in names)
    body = _sections(first) + drawn + _sections(parts)
    links = f'<a href="/?{query.replace("run=", "compare=")}">other runs …</a> '
    return _page("Comparison", f"/parts/compare?{query}", f"/curves?{query}", body, links)


def _steps(query: dict[str, list[str]]) -> tuple[float, float] | None:
    """The requested range of steps, None for all."""
    try:
        first, last = (float(query[name][0]) for name in ("from", "to"))
    except (KeyError, ValueError):
        return None
    return (first, last) if first <= last else None


def _curves(
    views: Views, shots: Sequence[Snapshot], steps: tuple[float, float] | None
) -> dict[str, object]:
    """Curves for the script: rows of step, mean, lowest, highest, first step, number of rows."""
    names = compare.metrics_of(shots)
    if len(shots) == 1 and "loss" in names and "eval_loss" in names:
        names.remove("eval_loss")  # drawn with the loss
    wanted = {*names, "eval_loss"}
    curves = [
        {**shot.curves, **(views.closer(shot.run, *steps) if steps else {})} for shot in shots
    ]
    return {
        "version": _version(shots),
        "metrics": [[name, metric_label(name)] for name in names],
        "runs": [
            {
                "name": clean(shot.name),
                "curves": {
                    name: as_json.rows_of(metric_points(of, name)) for name in of if name in wanted
                },
            }
            for shot, of in zip(shots, curves, strict=True)
        ],
        "machine": {name: as_json.rows_of(curve) for name, curve in views.history().items()},
    }


def _version(shots: Sequence[Snapshot]) -> str:
    """Version that changes when there is something new to draw."""
    curves = [curve for shot in shots for curve in shot.curves.values()]
    return " ".join(f"{curve.rows}-{curve.newest_step}" for curve in curves)


def _log(snapshot: Snapshot, wanted: str) -> Answer:
    rank = next((rank for rank in snapshot.ranks if str(rank.rank) == wanted), None)
    tail = log_tail(log_of(snapshot, rank), _LOG) if rank else None
    if tail is None:
        return HTTPStatus.NOT_FOUND, "text/plain", "there is no such log here\n"
    return HTTPStatus.OK, "text/plain", "\n".join(tail.lines) + "\n"


def _list_parts(views: Views) -> dict[str, str]:
    snapshots = views.list.get()
    names = [name_of(snapshot.run) for snapshot in snapshots]
    links = [f"/run/{quote(name)}" for name in names]
    return {"list": runs.listing(snapshots, names, links), "older": runs.older(views.older)}


def _sections(parts: dict[str, str]) -> str:
    return "".join(f'<section data-part="{name}">{body}</section>' for name, body in parts.items())


def _html(body: str) -> Answer:
    return HTTPStatus.OK, "text/html", body


def _page(title: str, parts: str, curves: str, body: str, links: str = "") -> Answer:
    return _html(
        _SHELL.format(
            title=page.esc(title),
            parts=page.esc(parts),
            curves=page.esc(curves),
            most=compare.MOST,
            body=body,
            links=links,
        )
    )


def _parts(parts: dict[str, str], shots: Sequence[Snapshot]) -> Answer:
    """The parts for the script; `reading` says that it should ask again soon."""
    reading = any(shot.reading is not None for shot in shots)
    return _json({"parts": parts, "version": _version(shots), "reading": reading})


def _json(value: object) -> Answer:
    return HTTPStatus.OK, "application/json", json.dumps(value, ensure_ascii=False)


def handler(views: Views) -> type[BoundedHandler]:
    """The handler class that a server instantiates for every connection."""

    class ViewHandler(BoundedHandler):
        def do_GET(self) -> None:
            if is_ours(self.headers.get("Host", "")):
                found = answer(views, self.path)
            else:
                text = "this monitor answers to 127.0.0.1 and localhost only\n"
                found = HTTPStatus.MISDIRECTED_REQUEST, "text/plain", text
            self.answer(*found, _HEADERS)

    return ViewHandler


def is_ours(host: str) -> bool:
    """Whether a Host header is localhost or 127.0.0.1, with any port, since ports are forwarded."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    return name.lower() in _NAMES


class ViewServer(BoundedServer):
    """The server, which also measures this machine, with a browser or without."""

    def __init__(self, address: tuple[str, int], views: Views) -> None:
        self._views = views
        super().__init__(address, handler(views))

    def service_actions(self) -> None:
        self._views.sample()


def open_server(root: Path, run: Run | None, port: int | None) -> ViewServer:
    """Listen on 127.0.0.1: on `port`, or on the usual one where that is free, else on any.

    Raises UserError for a port that cannot be used.
    """
    views = Views(root, run, name_of)
    for number in (port,) if port is not None else (PORT, 0):
        try:
            return ViewServer(("127.0.0.1", number), views)
        except (OSError, OverflowError) as error:
            reason = error
    raise UserError(f"port {port} cannot be used ({reason}); choose another one with --port")


def serve(root: Path, run: Run | None, port: int | None) -> int:
    """Serve until Ctrl-C."""
    server = open_server(root, run, port)
    path = f"run/{quote(name_of(run))}" if run else ""
    print(f"http://127.0.0.1:{server.server_port}/{path}   (Ctrl-C ends the view only)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return EXIT_DONE
