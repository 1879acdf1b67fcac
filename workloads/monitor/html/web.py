"""The view in a browser: a small server on 127.0.0.1 that only reads, and needs nothing but this.

A page on the internet can make a browser on this machine ask 127.0.0.1. It is kept out by the name
it asks for (the Host header, against DNS rebinding) and by sending no permission to read across
origins; nothing can be changed through this server in any case.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from workloads.errors import EXIT_DONE, UserError
from workloads.monitor.html import page
from workloads.monitor.html.style import CSS
from workloads.monitor.reading import find
from workloads.monitor.reading.hardware import Hardware, Reading
from workloads.monitor.reading.snapshot import Snapshot, Watch
from workloads.monitor.text import plain
from workloads.run import Run

PORT = 8737
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_FRESH = 0.8  # seconds that a look is shown to several browsers
_WATCHES = 8  # runs whose curves are held
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SCRIPT = """
"use strict";
const view = document.getElementById("view");
let shown = "";
const note = document.getElementById("note");
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(view.dataset.source, { cache: "no-store" });
    const text = await answer.text();
    if (!answer.ok) throw new Error(text);
    if (shown !== text) { view.innerHTML = text; shown = text; }
    note.textContent = "";
  } catch (problem) {
    note.textContent = "no answer from the monitor: what is shown is the last it sent";
  }
}
setInterval(look, 2000);
document.addEventListener("visibilitychange", look);
"""
_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · tatara</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<link rel="stylesheet" href="/style.css"></head><body>
<nav><a href="/">all runs</a> <span id="note" class="soft" role="status"></span></nav>
<main id="view" data-source="{source}">{body}</main>
<script src="/view.js" defer></script></body></html>
"""


@dataclass
class Views:
    """What all requests share: watches of the runs that were asked for. `lock` is for one request
    at a time, since a look changes what another one would be drawing."""

    root: Path
    first: Run | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _watches: "OrderedDict[Path, Watch]" = field(default_factory=OrderedDict)
    _looks: dict[Path, tuple[float, Snapshot]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hardware = Hardware()
        self._glances = find.Glances()
        self._here = (time.monotonic(), self._hardware.look())

    def find(self, name: str) -> Run | None:
        """A run by `profile/id`, among those there are: a name never becomes a path."""
        known = [*([self.first] if self.first else []), *find.runs(self.root)]
        return next((run for run in known if name_of(run) == name), None)

    def look(self, run: Run) -> tuple[Snapshot, Reading]:
        here = self._machine()
        taken, now = self._looks.get(run.path, (0.0, None))
        if now is None or time.monotonic() - taken > _FRESH:
            now = self._watch(run).look(here.gpus)
            self._looks[run.path] = (time.monotonic(), now)
        return now, here

    def _machine(self) -> Reading:
        taken, here = self._here
        if time.monotonic() - taken > _FRESH:
            here = self._hardware.look()
            self._here = (time.monotonic(), here)
        return here

    def _watch(self, run: Run) -> Watch:
        watch = self._watches.pop(run.path, None) or Watch(run)
        self._watches[run.path] = watch
        while len(self._watches) > _WATCHES:
            gone, _ = self._watches.popitem(last=False)
            self._looks.pop(gone, None)
        return watch

    def glances(self) -> list[Snapshot]:
        return self._glances.look(find.runs(self.root)[: find.MOST])


def name_of(run: Run) -> str:
    return f"{run.path.resolve().parent.name}/{run.id}"


Answer = tuple[HTTPStatus, str, str]


def answer(views: Views, path: str) -> Answer:
    """Status, media type and text for a path; what is not there is a 404."""
    fixed: dict[str, Callable[[], Answer]] = {
        "/": lambda: _page("Runs", "/view", _list(views)),
        "/view": lambda: _html(_list(views)),
        "/data": lambda: _json({"runs": [plain.brief(one) for one in views.glances()]}),
        "/style.css": lambda: (HTTPStatus.OK, "text/css", CSS),
        "/view.js": lambda: (HTTPStatus.OK, "text/javascript", _SCRIPT),
    }
    if path in fixed:
        return fixed[path]()
    kind, _, name = path.removeprefix("/").partition("/")
    run = views.find(unquote(name)) if kind in ("run", "view", "data") else None
    if run is None:
        return HTTPStatus.NOT_FOUND, "text/plain", "there is no such run here\n"
    now, here = views.look(run)
    if kind == "data":
        return _json(plain.as_dict(now, here))
    body = page.live(now, here)
    return _html(body) if kind == "view" else _page(now.name, f"/view/{quote(name_of(run))}", body)


def _list(views: Views) -> str:
    glances = views.glances()
    links = [f"/run/{quote(name_of(one.run))}" for one in glances]
    return page.listing(glances, links)


def _html(body: str) -> Answer:
    return HTTPStatus.OK, "text/html", body


def _page(title: str, source: str, body: str) -> Answer:
    text = _SHELL.format(title=page.esc(title), source=page.esc(source), body=body)
    return _html(text)


def _json(value: object) -> Answer:
    return HTTPStatus.OK, "application/json", json.dumps(value, ensure_ascii=False)


def handler(views: Views) -> type[BaseHTTPRequestHandler]:
    """The class that a server makes an instance of for every connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            if not is_ours(self.headers.get("Host", "")):
                text = "this monitor answers to 127.0.0.1 and localhost only\n"
                self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", text)
                return
            with views.lock:
                found = answer(views, urlsplit(self.path).path)
            self._send(*found)

        def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
            content = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def version_string(self) -> str:
            return "tatara"

        def log_message(self, format: str, *args: object) -> None:
            """A line for every look of every browser would tell nobody anything."""

    return Handler


def is_ours(host: str) -> bool:
    """Whether a Host header names this machine as itself; any port, since ports are forwarded."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    return name.lower() in _NAMES


class Server(ThreadingHTTPServer):
    """Threads end with the process; a browser that hangs holds nobody up."""

    daemon_threads = True


def open_server(root: Path, run: Run | None, port: int | None) -> Server:
    """Listen on 127.0.0.1: on `port`, or on the usual one where that is free, else on any."""
    views = Views(root, run)
    for one in (port,) if port is not None else (PORT, 0):
        try:
            return Server(("127.0.0.1", one), handler(views))
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
