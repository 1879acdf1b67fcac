"""The newest run of this host, for the scripts that start and stop one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def newest(outputs: Path, profile: str = "", since: float = 0) -> Path | None:
    """The run that wrote an event last, of one profile or of all, later than a time; else None."""
    found = []
    for path in outputs.glob(f"{profile or '*'}/*/events.jsonl"):
        try:
            written = path.stat().st_mtime
        except OSError:
            continue  # of another user, or gone
        if written > since:
            found.append((written, path.parent))
    return max(found)[1] if found else None


def has_first_step(run: Path, since: float) -> bool:
    """Whether a run has a row with a loss that is newer than this start."""
    path = run / "metrics.jsonl"
    try:
        return path.stat().st_mtime > since and "loss" in _last_row(path)
    except OSError:
        return False


def _last_row(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            lines = [line for line in file.read().split(b"\n") if line.strip()]
        found = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}  # empty, or cut while it is written
    return found if isinstance(found, dict) else {}


def newest_checkpoint(run: Path) -> Path | None:
    """The last whole checkpoint."""
    found = {}
    for seal in run.glob("checkpoints/checkpoint-*/complete.json"):
        if number := re.fullmatch(r"checkpoint-(\d+)", seal.parent.name):
            found[int(number[1])] = seal.parent
    return found[max(found)] if found else None


def how_it_stopped(outputs: Path, profile: str, since: float = 0) -> list[str]:
    """What a stop has left, and the command that goes on with it.

    A run writes of its stop: one that has written nothing since then is an older one.
    """
    run = newest(outputs, profile, since)
    if run is None:
        return ["stopped before there was anything to save"]
    if _last_row(run / "events.jsonl").get("event") == "finished":
        return [f"finished before the stop came: {run}"]
    saved = newest_checkpoint(run)
    if saved is None:
        return ["stopped before there was anything to save"]
    resume = f"scripts/start_training.sh {run.parent.name} --resume {run.name}"
    return [f"stopped; newest checkpoint: {saved}", f"go on with: {resume}"]
