"""Two nodes that are not alike end before their first step, and what differs is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.processes import PATIENCE, ROOT, Training, descendants, events, rows
from workloads.launch.network import free_ports

pytestmark = pytest.mark.fault


def pair(tmp_path: Path) -> list[Path]:
    """Folders of two nodes, each with its own profile, rows and code, alike so far."""
    demo = (ROOT / "data" / "demo" / "gsm8k.jsonl").read_text().splitlines(keepends=True)[:24]
    profile = {
        "workload": "llm",
        "name": "pair",
        "model": {"name": str(ROOT / "data" / "demo" / "tiny-llama"), "random_init": True},
        "data": {"source": "rows.jsonl", "format": "qa", "eval_rows": 4, "max_length": 320},
        "train": {"max_steps": 2, "per_device_batch_size": 2, "precision": "fp32"},
        "parallel": {"nodes": 2, "ranks_per_node": 1, "strategy": "ddp", "restarts": 0},
        "evaluation": {"every_steps": None},
        "export": {"enabled": False},
        "tracking": {"tensorboard": False},
    }
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    for node in nodes:
        node.mkdir()
        (node / "rows.jsonl").write_text("".join(demo))
        (node / "pair.yaml").write_text(yaml.safe_dump(profile))
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "workloads", node / "workloads", ignore=skip)
    return nodes


def train(nodes: list[Path]) -> tuple[list[int], str]:
    """Exit codes of both nodes, and what node 0 printed."""
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports()),
        "TATARA_RENDEZVOUS_SECRET": "shared by the two nodes alone",
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for number, node in enumerate(nodes):
        own = {
            "NODE_RANK": str(number),
            "PYTHONPATH": str(node),
            "TATARA_OUTPUTS": str(node / "outputs"),
            "TATARA_CACHE": str(node / "cache"),
        }
        command = [sys.executable, "-m", "workloads.cli", "train", "pair.yaml"]
        with (node / "console.log").open("wb") as log:
            started.append(
                subprocess.Popen(command, cwd=node, env=shared | own, stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    return codes, (nodes[0] / "console.log").read_text()


def steps(nodes: list[Path]) -> int:
    return sum(len(rows(path)) for node in nodes for path in node.glob("outputs/*/*/metrics.jsonl"))


@pytest.mark.parametrize("differs", ["rows", "code"])
def test_nodes_that_differ_end_before_the_first_step(tmp_path: Path, differs: str) -> None:
    """E-1."""
    nodes = pair(tmp_path)
    if differs == "rows":
        path = nodes[1] / "rows.jsonl"
        given = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [{**row, "question": row["question"].upper()} for row in given]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    else:
        path = nodes[1] / "workloads" / "llm" / "train.py"
        path.write_text(path.read_text().replace("* self.accelerator.num_processes", "* 3"))
    codes, console = train(nodes)
    assert codes == [2, 2], console
    assert f"expected the same {differs} on all nodes, found" in console
    assert "on node 1 (" in console and "on node 0 (" in console
    assert "Traceback" not in console
    assert steps(nodes) == 0


def test_nodes_that_are_alike_train(tmp_path: Path) -> None:
    """E-1: the same two nodes, unchanged."""
    nodes = pair(tmp_path)
    codes, console = train(nodes)
    assert codes == [0, 0], console
    assert steps(nodes) > 0


def test_a_node_that_cannot_write_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    """Not "lost node 1", restarts, and minutes of waiting for it."""
    nodes = pair(tmp_path)
    (nodes[1] / "outputs").write_text("a file in the place of the folder")
    codes, console = train(nodes)
    assert codes == [2, 2], console
    assert "cannot be created: Not a directory" in console
    assert steps(nodes) == 0


def test_a_local_node_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """Nobody else would: its start is node 0's, and its port is known to no person."""
    training = Training(tmp_path, fault="hang:10:1")
    training.until_event("checkpoint")
    (second,) = [
        pid
        for pid in descendants(training.process.pid)[1:]
        if b"workloads.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(second, signal.SIGKILL)
    training.end()
    assert events(training.run, "restarted")[0]["reason"].startswith("lost node 1")
    assert events(training.run, "finished")
