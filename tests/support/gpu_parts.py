"""Stand-ins for the parts of bench/gpu/run.sh: results, and shell commands for processes."""

import json
import subprocess
from typing import Any

import pytest

CHECKS = [{"name": "it learns", "passed": True, "found": "2 → 1"}]
# What a part writes on its way.
HALF = f"""echo '{json.dumps({"status": "unfinished", "checks": CHECKS})}' > "$1" """


def result(status: str = "passed", **more: Any) -> dict[str, Any]:
    machine = {"card": more.pop("card", None), "python": "3.12.3", "packages": {"torch": "2.11.0"}}
    own = {
        "status": status,
        "checks": CHECKS,
        "figures": {"tokens/s": 7},
        "memory": [],
        "notes": [],
    }
    ran_on = machine["card"] or "CPU, tiny shapes"
    return {**own, "title": "a part", "seconds": 3.0, "machine": machine, "ran_on": ran_on, **more}


def as_command(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    popen = subprocess.Popen

    def start(command: list[str], **kwargs: Any) -> Any:
        file = command[command.index("--result") + 1]
        return popen(["bash", "-c", script, "part", file], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", start)
