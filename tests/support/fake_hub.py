"""A hub on loopback for tests: serves folders as repositories, and fails in every way a hub can."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterable
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Mood = Literal["fine", "too many requests", "broken", "silent"]
GOOD_TOKEN = "hf_good"
OTHER_TOKEN = "hf_other"  # valid, but of an account that may read no gated or private repository


class FakeHub:
    """`with FakeHub({"owner/name": folder}) as hub:` listens at `hub.url` until the block ends.

    Names under `gated` and `private` need GOOD_TOKEN. `requests` holds (method, path) of every
    request, `pushed` the files of every commit.
    """

    def __init__(self, repositories: dict[str, Path], gated: Iterable[str] = ()) -> None:
        self.repositories = repositories
        self.gated = set(gated)
        self.private: set[str] = set()
        self.mood: Mood = "fine"
        self.requests: list[tuple[str, str]] = []
        self.pushed: dict[str, dict[str, bytes]] = {}
        self.orgs: list[dict[str, str]] = []
        self.access: dict[str, object] = {}  # what whoami says of the token; else its role
        self.created: dict[str, bool] = {}  # name → whether it was made private
        self.branches: list[tuple[str, str]] = []
        self.large = ""  # pattern of files that are stored apart from commits, by their sha256
        self.stored: dict[str, bytes] = {}
        self.cut_after: int | None = None  # large files until uploads are cut
        self.xet = "http://127.0.0.1:9"  # where large files go in chunks: nobody is there
        self.store = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def commit_of(self, name: str) -> str:
        """A commit id that changes with the name only: contents do not change in a test."""
        return hashlib.sha1(name.encode()).hexdigest()


def _handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        """A large file; where uploads are cut, the connection ends in the middle of it."""
        size = int(self.headers.get("Content-Length") or 0)
        oid = self.path.rpartition("/")[2]
        self.hub.requests.append(("PUT", f"lfs/{oid}"))
        with self.hub.store:  # one file after the other: which is cut must not depend on threads
            if self.hub.cut_after is not None and len(self.hub.stored) >= self.hub.cut_after:
                self.rfile.read(size // 2)
                self.close_connection = True
                return
            self.hub.stored[oid] = self.rfile.read(size)
        self._send(200)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        if self.hub.mood == "silent":
            self.hub.closing.wait()
            self.close_connection = True
        elif self.hub.mood == "too many requests":
            self._send(429, headers={"Retry-After": "17"})
        elif self.hub.mood == "broken":
            self._send(503)
        elif self._token() not in (None, GOOD_TOKEN, OTHER_TOKEN):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif self.command == "POST":
            self._take(path, body)
        else:
            self._read(path)

    def _token(self) -> str | None:
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def _read(self, path: str) -> None:
        parts = path.split("/")
        if path == "api/whoami-v2":
            self._who()
            return
        if parts[0] == "api":
            name, action = "/".join(parts[2:4]), parts[4:]
        else:
            parts = parts[1:] if parts[0] == "datasets" else parts
            name, action = "/".join(parts[:2]), parts[2:]
        if not self._may_read(name):
            return
        if action[:1] == ["resolve"]:
            self._send_file(name, action[1], "/".join(action[2:]))
        elif action[:1] == ["xet-write-token"]:
            headers = {"X-Xet-Cas-Url": self.hub.xet, "X-Xet-Access-Token": "t"}
            headers["X-Xet-Token-Expiration"] = str(2**33)
            body = json.dumps({"casUrl": self.hub.xet, "accessToken": "t", "exp": 2**33})
            self._send(200, body.encode(), headers)
        elif action[:1] == ["tree"]:
            self._send_json(self._tree(name))
        else:
            self._send_json({"id": name, "sha": self.hub.commit_of(name), "siblings": []})

    def _who(self) -> None:
        if self._token() is None:
            self._refuse(401, None, "Invalid username or password.")
        else:
            role = "write" if self._token() == GOOD_TOKEN else "read"
            who = {"type": "user", "name": "me", "orgs": self.hub.orgs}
            access = {"displayName": "test", **(self.hub.access or {"role": role})}
            self._send_json({**who, "auth": {"type": "access_token", "accessToken": access}})

    def _may_read(self, name: str) -> bool:
        good = self._token() == GOOD_TOKEN
        known = name in self.hub.pushed or (
            name in self.hub.repositories and (name not in self.hub.private or good)
        )
        if not known:
            self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated and not good:
            self._refuse(403 if self._token() else 401, "GatedRepo", f"{name} is gated")
            return False
        return known

    def _tree(self, name: str) -> list[dict[str, object]]:
        if name in self.hub.pushed:
            return [self._info(name, path) for path in sorted(self.hub.pushed[name])]
        folder = self.hub.repositories[name]
        return [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def _info(self, name: str, path: str) -> dict[str, object]:
        content = self.hub.pushed[name][path]
        oid = hashlib.sha1(content).hexdigest()
        info: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": oid}
        if fnmatch(path, self.hub.large):
            sha256 = hashlib.sha256(content).hexdigest()
            info["lfs"] = {
                "oid": sha256,
                "sha256": sha256,
                "size": len(content),
                "pointerSize": 134,
            }
        return info

    def _send_file(self, name: str, revision: str, file: str) -> None:
        commit = self.hub.commit_of(name)
        if name in self.hub.pushed:
            self._send_pushed(name, file)
            return
        if revision not in ("main", commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        path = self.hub.repositories[name] / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": commit})

    def _send_pushed(self, name: str, file: str) -> None:
        content = self.hub.pushed[name].get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        # Another commit for other content, so that no client takes its old copy.
        commit = hashlib.sha1(content).hexdigest()
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": commit})

    def _take(self, path: str, body: bytes) -> None:
        """What a push asks for: create, validate, which files inline, large files, commit."""
        if self._token() is None:
            self._refuse(401, None, "Invalid username or password.")
        elif self._token() == OTHER_TOKEN:
            self._refuse(403, None, "You don't have the rights to create a model here")
        elif path == "api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.created.setdefault(name, bool(private))
            self._send_json({"url": f"{self.hub.url}/{name}", "name": name})
        elif path == "api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if fnmatch(name, self.hub.large) else "regular" for name in files}
            told = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False}
                for name, mode in modes.items()
            ]
            self._send_json({"files": told})
        elif path.endswith("/objects/batch"):
            self._send_json({"transfer": "basic", "objects": self._wanted(json.loads(body))})
        elif "/paths-info/" in path:
            name = "/".join(path.split("/")[2:4])
            paths = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            known = self.hub.pushed.get(name, {})
            self._send_json([self._info(name, file) for file in paths if file in known])
        elif "/branch/" in path:
            self.hub.branches.append(("/".join(path.split("/")[2:4]), path.split("/")[5]))
            self._send_json({})
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[2:4]), body)
        else:
            self._refuse(404, None, f"no {path} here")

    def _wanted(self, batch: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
        """Large files that are asked about: where those go that are not there yet."""
        found = []
        for file in batch["objects"]:
            oid = str(file["oid"])
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}}
            found.append({**file} if oid in self.hub.stored else {**file, "actions": upload})
        return found

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.pushed.setdefault(name, {})[entry["value"]["path"]] = content
            elif entry["key"] == "lfsFile":
                content = self.hub.stored[entry["value"]["oid"]]
                self.hub.pushed.setdefault(name, {})[entry["value"]["path"]] = content
            elif entry["key"] == "deletedFile":
                del self.hub.pushed[name][entry["value"]["path"]]
        commit = self.hub.commit_of(name)
        self._send_json(
            {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit}
        )

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, headers=headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
