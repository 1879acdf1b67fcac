"""A network as companies have it: one way out, a proxy with a password, and an own authority."""

import base64
import http.server
import io
import select
import socket
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

INDEX = "index.example"  # a name that only the proxy knows
USER = "u:canary-5f0c"
_WHEEL = "tatara_probe-1.0-py3-none-any.whl"


@dataclass
class PrivateNetwork:
    """Where the proxy listens, the authority's certificate, and what went through."""

    proxy: str
    authority: Path
    tunnels: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def _certificates(folder: Path) -> None:
    """An authority, and the certificate of INDEX that it has signed."""
    ca, key = str(folder / "ca.pem"), str(folder / "ca.key")
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    _openssl(*new, "-x509", "-days", "2", "-subj", "/CN=Private", "-keyout", key, "-out", ca)
    request = str(folder / "index.csr")
    own = str(folder / "index.key")
    _openssl(*new, "-subj", f"/CN={INDEX}", "-keyout", own, "-out", request)
    (folder / "names").write_text(f"subjectAltName=DNS:{INDEX}\n")
    signed = ("x509", "-req", "-days", "2", "-in", request, "-CA", ca, "-CAkey", key)
    names = ("-CAcreateserial", "-extfile", str(folder / "names"))
    _openssl(*signed, *names, "-out", str(folder / "index.pem"))


def _wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        info = "tatara_probe-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tatara-probe\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return content.getvalue()


_PACKAGES = b"""Package: tatara-probe
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.invalid>
Filename: ./tatara-probe.deb
Size: 1
Description: a package that is listed and not there
"""


class _Index(http.server.BaseHTTPRequestHandler):
    """A package index of one package, for pip and for apt."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if "/apt/" in self.path and not self.path.endswith("/Packages"):
            self.send_error(404)
            return
        page = f'<a href="/{_WHEEL}">{_WHEEL}</a>'.encode()
        page = _PACKAGES if self.path.endswith("/Packages") else page
        body = _wheel() if self.path.endswith(".whl") else page
        kind = "application/octet-stream" if self.path.endswith(".whl") else "text/html"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _proxy(network: list[PrivateNetwork], target: tuple[str, int]) -> type:
    class Proxy(_Index):
        def _may(self) -> bool:
            given = self.headers.get("Proxy-Authorization", "")
            may = given == "Basic " + base64.b64encode(USER.encode()).decode()
            (network[0].tunnels if may else network[0].refused).append(self.path)
            if not may:
                self.send_error(407)
            return may

        def do_GET(self) -> None:
            """Without a tunnel: apt's usual way."""
            if self._may():
                super().do_GET()

        def do_CONNECT(self) -> None:
            if not self._may():
                return
            if self.path != f"{INDEX}:443":
                self.send_error(502)
                return
            with socket.create_connection(target) as there:
                self.send_response(200)
                self.end_headers()
                _tunnel(self.connection, there)

    return Proxy


def _tunnel(here: socket.socket, there: socket.socket) -> None:
    other = {here: there, there: here}
    while True:
        for ready in select.select([here, there], [], [], 60)[0]:
            if not (piece := ready.recv(1 << 16)):
                return
            other[ready].sendall(piece)


@contextmanager
def private_network(folder: Path, address: str) -> Iterator[PrivateNetwork]:
    """Serves the proxy at an address of this machine that containers reach, while it lasts."""
    _certificates(folder)
    index = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "index.pem", folder / "index.key")
    index.socket = context.wrap_socket(index.socket, server_side=True)
    made: list[PrivateNetwork] = []
    proxy = http.server.ThreadingHTTPServer(
        (address, 0), _proxy(made, ("127.0.0.1", index.server_port))
    )
    made.append(PrivateNetwork(f"http://{USER}@{address}:{proxy.server_port}", folder / "ca.pem"))
    for server in (index, proxy):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made[0]
    finally:
        for server in (index, proxy):
            server.shutdown()
            server.server_close()
