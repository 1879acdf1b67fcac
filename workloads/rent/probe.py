"""Runs on the machine, by its own python3: the state of the training as one JSON object.

    python3 - RUN_FOLDER JOB_FOLDER

Only the standard library, Python 3.9 or later. `progress` changes whenever the training progresses,
in any phase; a heartbeat alone is no progress.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def look(run: Path, job: Path) -> dict[str, Any]:
    """The current state of the run."""
    statuses = {}
    for path in sorted((run / "status").glob("[0-9]*.json")):
        try:
            statuses[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    first = statuses.get("0", {})
    progress = {
        rank: [status.get("phase"), status.get("progress")] for rank, status in statuses.items()
    }
    sizes = [_size(run / "metrics.jsonl"), _size(run / "events.jsonl"), _size(job / "log")]
    # Long work before there is a run: downloads and caches on the machine.
    return {
        "run": (run / "config.json").is_file(),
        "code": _number(job / "exit"),
        "alive": _alive(_number(job / "runner.process")),
        "phase": first.get("phase", ""),
        "step": first.get("step", 0),
        "steps": first.get("steps", 0),
        "progress": json.dumps([progress, sizes], sort_keys=True),
        "sealed": sorted(
            path.parent.name for path in (run / "checkpoints").glob("*/complete.json")
        ),
        "final": (run / "final" / "complete.json").is_file(),
        "free": shutil.disk_usage(run if run.is_dir() else Path.home()).free,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _alive(process: int | None) -> bool:
    if process is None:
        return False
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1]), Path(sys.argv[2]))))
