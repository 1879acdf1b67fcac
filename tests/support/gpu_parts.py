"""Stand-ins for the parts of bench/gpu/run.sh: results, and shell commands for processes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until

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


HANGS = ': >"$1.hangs"; sleep 60 & wait'


def as_command(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Parts are a shell command; the time of one that HANGS is not over before it does."""
    popen: Any = subprocess.Popen

    class Command(popen):
        def __init__(self, command: list[str], **kwargs: Any) -> None:
            self.result = command[command.index("--result") + 1]
            super().__init__(["bash", "-c", script, "part", self.result], **kwargs)

        def wait(self, timeout: float | None = None) -> int:
            if HANGS in script:
                hangs = Path(f"{self.result}.hangs")
                until(lambda: self.poll() is not None or hangs.exists())
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Command)
