"""Lambda's Cloud API for tests, written from its specification: envelope, codes, pace, and faults.

`answer()` is the API itself, at a time that is given; `serve()` puts it on loopback.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "secret_tatara_" + "key-of-the-account"
JUPYTER = "jupyter-" + "token-of-an-instance"
PRICES = {
    "cpu_4x_general": (12, 0, "CPU only"),
    "gpu_1x_a10": (129, 1, "A10 (24 GB PCIe)"),
    "gpu_1x_gh200": (229, 1, "GH200 (96 GB)"),
    "gpu_1x_h100_pcie": (329, 1, "H100 (80 GB PCIe)"),
    "gpu_8x_h100_sxm5": (3432, 8, "H100 (80 GB SXM5)"),
}


@dataclass
class FakeLambda:
    """One account. The fields below `instances` are its faults.

    races: launches that find no capacity though it is listed; deaf: terminates that are heard and
    do nothing; broken: answers of terminate with 500; lost: launches that work and are not
    answered; states: statuses of the instances in their order, in place of the usual ones.
    """

    regions: dict[str, list[str]] = field(
        default_factory=lambda: dict.fromkeys(PRICES, ["us-east-1"])
    )
    address: str = "192.0.2.7"
    address_after: float = 25.0
    active_after: float = 70.0
    keys: list[dict[str, str]] = field(default_factory=list)
    file_systems: list[dict[str, Any]] = field(default_factory=list)
    key: str = KEY
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    races: int = 0
    deaf: int = 0
    broken: int = 0
    lost: int = 0
    states: list[str] = field(default_factory=list)
    no_address: int = 0  # instances, the first ones, that never get one
    requests: list[tuple[str, str]] = field(default_factory=list)
    refused: int = 0  # requests that came too quickly
    _last: float = -99.0
    _last_launch: float = -99.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> list[str]:
        """Names of what costs."""
        return [
            instance["name"]
            for instance in self.instances.values()
            if instance["status"] != "terminated"
        ]

    @property
    def launched(self) -> int:
        return len(self.instances)

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, now: float
    ) -> tuple[int, str]:
        """Status and text; OSError where a launch is heard and its answer lost."""
        with self._lock:
            launch = path == "/instance-operations/launch"
            if now - self._last < 0.9 or (launch and now - self._last_launch < 11.5):
                self.refused += 1
                return 429, "<html>slow down</html>"
            self._last = now
            if launch:
                self._last_launch = now
            self.requests.append((method, path))
            if headers.get("Authorization") != f"Bearer {self.key}":
                return _error(
                    401, "global/invalid-api-key", "API key was invalid, expired, or deleted."
                )
            return self._routed(method, path, json.loads(body) if body else {}, now)

    def _routed(self, method: str, path: str, body: Any, now: float) -> tuple[int, str]:
        if (method, path) == ("GET", "/instance-types"):
            return _data({name: self._type(name) for name in PRICES})
        if (method, path) == ("GET", "/instances"):
            shown = [self._shown(id, now) for id in self.instances]
            return _data([machine for machine in shown if machine["status"] != "terminated"])
        if method == "GET" and path.startswith("/instances/"):
            id = path.rpartition("/")[2]
            if id not in self.instances:
                return _error(
                    404, "global/object-does-not-exist", "Specified instance does not exist."
                )
            return _data(self._shown(id, now))
        if path == "/ssh-keys":
            if method == "POST":
                self.keys.append({"id": uuid.uuid4().hex, **body})
                return _data(self.keys[-1])
            return _data(self.keys)
        if path == "/file-systems":
            return _data(self.file_systems)
        if path == "/instance-operations/launch":
            return self._launch(body, now)
        if path == "/instance-operations/terminate":
            return self._terminate(body["instance_ids"], now)
        return _error(404, "global/object-does-not-exist", f"{method} {path}: no such resource")

    def _type(self, name: str) -> dict[str, Any]:
        return {
            "instance_type": _type(name),
            "regions_with_capacity_available": [
                {"name": region, "description": region} for region in self.regions.get(name, [])
            ],
        }

    def _launch(self, body: dict[str, Any], now: float) -> tuple[int, str]:
        allowed = {"region_name", "instance_type_name", "ssh_key_names", "file_system_names"}
        allowed |= {"name", "image", "user_data", "file_system_mounts"}
        if set(body) - allowed or len(body["ssh_key_names"]) != 1 or len(body["name"]) > 64:
            return _error(400, "global/invalid-parameters", f"Invalid request data: {sorted(body)}")
        if body["ssh_key_names"][0] not in [key["name"] for key in self.keys]:
            return _error(400, "global/invalid-parameters", "no such ssh key")
        region, kind = body["region_name"], body["instance_type_name"]
        if self.races or region not in self.regions.get(kind, []):
            self.races = max(0, self.races - 1)
            code = "instance-operations/launch/insufficient-capacity"
            return _error(400, code, "Not enough capacity to fulfill launch request.")
        id = uuid.uuid4().hex
        number = len(self.instances)
        self.instances[id] = {
            "name": body["name"],
            "type": kind,
            "region": region,
            "born": now,
            "status": "booting",
            "state": self.states[number] if number < len(self.states) else "",
            "has_address": number >= self.no_address,
        }
        if self.lost:
            self.lost -= 1
            raise ConnectionResetError("connection reset by peer")
        return _data({"instance_ids": [id]})

    def _terminate(self, ids: list[str], now: float) -> tuple[int, str]:
        if self.broken:
            self.broken -= 1
            return _error(500, "global/unknown", "An unknown error occurred.")
        if any(
            self.instances.get(id, {}).get("status", "terminated") == "terminated" for id in ids
        ):
            return _error(404, "global/object-does-not-exist", "Specified instance does not exist.")
        for id in ids:
            if self.deaf:
                self.deaf -= 1
            else:
                self.instances[id]["status"] = "terminating"
                self.instances[id]["ends"] = now + 8
        return _data({"terminated_instances": [self._shown(id, now) for id in ids]})

    def _shown(self, id: str, now: float) -> dict[str, Any]:
        """An instance as a listing has it: no private address, and tokens for all to read."""
        one = self.instances[id]
        age = now - one["born"]
        if one["status"] == "terminating" and now >= one["ends"]:
            one["status"] = "terminated"
        if one["status"] == "booting" and age >= self.active_after:
            one["status"] = "active"
        status = one["status"]
        if one["state"] and status in ("booting", "active"):
            status = one["state"]
        shown = {
            "id": id,
            "name": one["name"],
            "status": status,
            "ssh_key_names": ["mine"],
            "file_system_names": [],
            "region": {"name": one["region"], "description": one["region"]},
            "instance_type": _type(one["type"]),
            "actions": {"terminate": {"available": True}},
            "jupyter_token": JUPYTER,
            "jupyter_url": f"https://jupyter.example/?token={JUPYTER}",
        }
        if age >= self.address_after and one["has_address"]:
            shown["ip"] = self.address
        return shown

    @contextmanager
    def serve(self) -> Iterator[str]:
        """On loopback, by this machine's time; its URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


def _type(name: str) -> dict[str, Any]:
    cents, gpus, text = PRICES[name]
    return {
        "name": name,
        "description": f"{max(gpus, 1)}x {text}",
        "gpu_description": text,
        "price_cents_per_hour": cents,
        "specs": {"vcpus": 4, "memory_gib": 16, "storage_gib": 512, "gpus": gpus},
    }


def _data(value: Any) -> tuple[int, str]:
    return 200, json.dumps({"data": value})


def _error(status: int, code: str, message: str) -> tuple[int, str]:
    return status, json.dumps({"error": {"code": code, "message": message}})


def _handler_of(account: FakeLambda) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = account.answer(
                self.command, self.path, dict(self.headers), body or None, time.time()
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            return None

    return Handler
