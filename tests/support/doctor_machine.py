"""A machine for the doctor's tests: stand-in programs alone on PATH, a checkout, a hub on loopback.

The stand-ins print what the real nvidia-smi, docker and nvidia-ctk print, where they print it.
"""

import contextlib
import json
import shlex
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from workloads.doctor.command import examine
from workloads.doctor.facts import Facts, look
from workloads.findings import Finding

ROOT = Path(__file__).resolve().parents[2]
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24564, "8.9")
H100 = ("NVIDIA H100 80GB HBM3", 81559, "9.0")
V100 = ("Tesla V100-SXM2-32GB", 32768, "7.0")
LEGEND = "\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n  CNS  = Chipset not supported\n"


class Machine:
    """One machine under a folder; what is not installed on it is not on its PATH."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.bin, self.home = folder / "bin", folder / "checkout"
        self.bin.mkdir()
        self.home.mkdir()
        shutil.copytree(ROOT / "profiles", self.home / "profiles")
        shutil.copytree(ROOT / "data" / "demo", self.home / "data" / "demo")
        self.env = {"PATH": str(self.bin), "HOME": str(self.home), "HF_HUB_OFFLINE": "1", **env}

    def program(self, name: str, *cases: str, otherwise: str = "exit 127") -> None:
        """A stand-in: shell cases over all its arguments."""
        lines = ["#!/bin/sh", 'case "$*" in', *cases, f"*) {otherwise} ;;", "esac"]
        path = self.bin / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)

    def gpus(
        self,
        *cards: tuple[str, int, str],
        driver: str = "580.95.05",
        p2p: str = "OK",
        tells_capability: bool = True,
    ) -> None:
        """nvidia-smi with these cards; an old one refuses to be asked for compute_cap."""
        known = ["index", "uuid", "name", "driver_version", "memory.total", "compute_cap"]
        rows = [
            (str(at), f"GPU-{at}a-77", name, driver, str(size), capability)
            for at, (name, size, capability) in enumerate(cards)
        ]
        refusal = 'Field "compute_cap" is not a valid field to query.'
        cases = [] if tells_capability else [f"*compute_cap*) {say(refusal)}; exit 2 ;;"]
        for count in (6, 5):
            text = "\n".join(", ".join(row[:count]) for row in rows)
            query = f"--query-gpu={','.join(known[:count])} --format=csv,noheader,nounits"
            cases.append(f"{shlex.quote(query)}) {say(text)} ;;")
        cases.append(f"{shlex.quote('topo -p2p r')}) {say(matrix(len(cards), p2p))} ;;")
        cases.append(f"'') {say(printed(rows))} ;;")
        self.program("nvidia-smi", *cases)

    def broken_driver(self, text: str) -> None:
        self.program("nvidia-smi", otherwise=f"{say(text)}; exit 9")

    def docker(
        self,
        services: dict[str, dict[str, Any]] | None = None,
        *,
        runtimes: Sequence[str] = ("io.containerd.runc.v2", "nvidia", "runc"),
        compose: str = "2.26.1-4",
        run: str | None = None,
        **facts: Any,
    ) -> None:
        """docker with an engine; `run`: what a container does, None where there is no image."""
        info = {
            "ServerVersion": "28.2.2",
            "Runtimes": {name: {} for name in runtimes},
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2",
            "SecurityOptions": ["name=seccomp,profile=default"],
            "MemTotal": 128 << 30,
            **facts,
        }
        for facts in (services or {}).values():  # each trains whatever is asked for
            facts.setdefault("labels", {"tatara.profiles": "*"})
        config = json.dumps({"name": "tatara", "services": services or {}})
        self.program(
            "docker",
            f"{shlex.quote('info --format {{json .}}')}) {say(json.dumps(info))} ;;",
            f"'compose version --short') {say(compose)} ;;",
            f"'compose --profile '*' config --format json') {say(config)} ;;",
            f"'image inspect '*) exit {1 if run is None else 0} ;;",
            f"'run --rm '*) {run or 'exit 125'} ;;",
        )

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with contextlib.chdir(self.home):
            yield

    def look(self, profile: str | None = None, *words: str, **env: str) -> Facts:
        with self.inside():
            return look({**self.env, **env}, profile, words)

    def examine(self, profile: str | None = None, *words: str, **env: str) -> dict[str, Finding]:
        """The findings by the name of the check; each name comes once."""
        with self.inside():
            found = examine(look({**self.env, **env}, profile, words))
        assert len({item.name for item in found}) == len(found)
        return {item.name: item for item in found}


def say(text: str) -> str:
    """A shell command that prints a text as it is, by the shell itself."""
    return f"printf '%s\\n' {shlex.quote(text)}"


def matrix(count: int, word: str) -> str:
    """What `nvidia-smi topo -p2p r` prints; the driver underlines the first row."""
    names = [f"GPU{at}" for at in range(count)]
    lines = ["\t\x1b[4m" + "\t".join(names) + "\x1b[0m\t"]
    for row in range(count):
        cells = ["X" if row == column else word for column in range(count)]
        lines.append(f" GPU{row}\t" + "\t".join(cells) + "\t")
    return "\n".join(lines) + "\n" + LEGEND


def printed(rows: Sequence[tuple[str, ...]]) -> str:
    """The table that nvidia-smi prints when it is asked for nothing."""
    driver = rows[0][3] if rows else "580.95.05"
    lines = [f"| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: 12.0     |"]
    for index, _, name, _, size, _ in rows:
        lines.append(f"|   {index}  {name:<24}   Off | 00000000:65:00.0 Off |          N/A |")
        lines.append(
            f"| 30%   41C    P8    12W / 450W |      1MiB / {size}MiB |      0%      Default |"
        )
    return "\n".join(lines)


def service(
    profile: str, rank: int | None = None, gpus: str | None = "", **more: Any
) -> dict[str, Any]:
    """A training service as `docker compose config --format json` tells of it.

    gpus: CUDA_VISIBLE_DEVICES; empty reserves a GPU without choosing; None reserves none.
    """
    env: dict[str, str | None] = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NNODES": ""}
    if rank is not None:
        env["NODE_RANK"] = str(rank)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = gpus
    found: dict[str, Any] = {
        "image": f"tatara/{profile}:local",
        "command": ["train", f"profiles/{profile}.yaml"],
        "environment": {**env, **more.pop("environment", {})},
        "shm_size": "17179869184",
        "user": "1000:1000",
        **more,
    }
    if gpus is not None:
        devices = [{"capabilities": ["gpu"], "driver": "nvidia", "count": -1}]
        found["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return found


def llm(master: str = "0,1", worker: str = "2,3", **more: Any) -> dict[str, dict[str, Any]]:
    """The services of llm-4090."""
    return {
        "llm-master": service("llm-4090", 0, master, **more),
        "llm-worker": service("llm-4090", 1, worker, **more),
    }


class Hub:
    """A hub on loopback whose answers a test chooses, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.asked: list[tuple[str, str, str | None]] = []
        self.silence = threading.Event()
        self.silent = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
                if hub.silent:
                    hub.silence.wait()
                moved = hub.headers.get("Location") == self.path
                self.send_response(200 if moved else hub.status)
                for name, value in ({} if moved else hub.headers).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.silence.set()
        self.server.shutdown()
        self.server.server_close()
