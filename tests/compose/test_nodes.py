"""Two nodes as containers: those that are not alike, and a stranger on their bridge network."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.compose.project import ROOT, Project, arguments, docker
from tests.support.processes import SHORT, events, steps
from tests.support.strangers import KINDS, cut_off

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

NODES = ("demo-master", "demo-worker")
TORCH_STORE, NODES_MEET = 37171, 37172
DEMO_ROWS = "data/demo/arithmetic.jsonl"


def worker_with(folder: Path, changed: Path, inside: str) -> Path:
    """A compose file that has the worker find another file there than node 0."""
    mount = {
        "type": "bind",
        "source": str(changed),
        "target": f"/workspace/{inside}",
        "read_only": True,
    }
    path = folder / "worker.yaml"
    path.write_text(yaml.safe_dump({"services": {"demo-worker": {"volumes": [mount]}}}))
    return path


def other_rows(folder: Path) -> Path:
    """The demo's rows, in which the questions are others, as long as before."""
    path = folder / "arithmetic.jsonl"
    path.write_text((ROOT / DEMO_ROWS).read_text().replace("How many", "Tell how"))
    return path


def other_code(folder: Path) -> Path:
    """The llm workload, whose loss is another."""
    path = folder / "train.py"
    text = (ROOT / "workloads" / "llm" / "train.py").read_text()
    path.write_text(text.replace("* self.accelerator.num_processes", "* 3"))
    return path


@pytest.mark.parametrize("differs", ["rows", "code"])
def test_nodes_that_differ_end_before_the_first_step(
    project: Callable[..., Project], tmp_path: Path, differs: str
) -> None:
    """E-1, in containers: each has its own image or its own data."""
    if differs == "rows":
        override = worker_with(tmp_path, other_rows(tmp_path), DEMO_ROWS)
    else:
        override = worker_with(tmp_path, other_code(tmp_path), "workloads/llm/train.py")
    files = ("compose.yaml", str(override))
    demo = project(files=files, **arguments(*SHORT))
    demo.up(*NODES)
    demo.ends(demo_master=2, demo_worker=2)
    told = demo.logs("demo-master")
    assert f"expected the same {differs} on all nodes, found" in told
    assert "on node 1 (demo-worker)" in told and "on node 0 (demo-master)" in told
    assert steps(demo.run()) == []


def listening(project: Project, service: str) -> list[int]:
    """The ports on which a container's processes listen."""
    words = ("exec", project.container(service), "cat", "/proc/net/tcp", "/proc/net/tcp6")
    sockets = [line.split() for line in docker(*words).splitlines() if ":" in line]
    return sorted({int(row[1].rpartition(":")[2], 16) for row in sockets if row[3] == "0A"})


def test_a_stranger_on_the_bridge_changes_nothing(project: Callable[..., Project]) -> None:
    """O-A4: every account of the host reaches what the containers listen on, and no secret."""
    demo = project(**arguments(*SHORT, "train.max_steps=200"))
    demo.up(*NODES)
    run = demo.until_step(2)
    addresses = {name: demo.address(name) for name in NODES}
    assert (demo.outputs / ".rendezvous-secret").stat().st_mode & 0o077 == 0
    for sent in KINDS.values():
        with socket.create_connection((addresses[NODES[0]], NODES_MEET), 10) as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(sent)
            assert b"welcome" not in cut_off(stranger)
    # torch's store, and where the ranks talk: noise, from connections that stay.
    ports = [(name, port) for name in NODES for port in listening(demo, name)]
    assert {(NODES[0], NODES_MEET), (NODES[0], TORCH_STORE)} < set(ports)
    with contextlib.ExitStack() as kept:
        for name, port in ports:
            for kind in ("http", "utf8", "number"):
                with contextlib.suppress(ConnectionError):  # some listen on their own 127.0.0.1
                    there = socket.create_connection((addresses[name], port), 10)
                    stranger = kept.enter_context(there)
                    stranger.sendall(KINDS[kind])
        assert max(steps(run)) < 200, "all of it was sent while they trained"
        demo.ends(demo_master=0, demo_worker=0)
    assert max(steps(run)) == 200
    assert [row["event"] for row in events(run, "restarted")] == []
    assert events(run, "stop requested") == []
    assert "Traceback" not in demo.logs(*NODES)
