"""Runs of this host, for the scripts that start and stop one."""

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def clock(outputs: Path) -> float:
    """The time now by the clock of the outputs' file system, which may be a server's own.

    By this machine's clock where nothing can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=outputs) as file:
            return os.stat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def newest(outputs: Path, profile: str = "", since: float = 0) -> Path | None:
    """The run that wrote an event last, of one profile or of all, later than a time; else None."""
    found = _changed(outputs, profile, since)
    return found[-1] if found else None


def _changed(outputs: Path, profile: str, since: float) -> list[Path]:
    """The runs that wrote an event after a time, the newest one last."""
    found = []
    for path in outputs.glob(f"{profile or '*'}/*/events.jsonl"):
        try:
            written = path.stat().st_mtime
        except OSError:
            continue  # of another user, or gone
        if written > since:
            found.append((written, path.parent))
    return [path for _, path in sorted(found)]


def has_first_step(run: Path, since: float) -> bool:
    """Whether a run has a row with a loss written after this start."""
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


_NOTHING = ["stopped before there was anything to save"]


def how_they_stopped(outputs: Path, profile: str, since: float = 0) -> list[str]:
    """How the runs ended since a stop, and the commands that resume them.

    A run writes its end under the name of its own profile or recipe; one without an event since
    then is an older run. Where there is none at all, a run was ended before it could write one.
    """
    ended = [run for run in _changed(outputs, "", since) if _ending(run)]
    if not ended and (run := newest(outputs, profile, since)):
        ended = [run]
    said = [line for run in ended for line in _how_it_stopped(run)]
    return [line for line in said if [line] != _NOTHING] or _NOTHING


def _ending(run: Path) -> str:
    """The event that ended a run; empty where there is none."""
    event = _last_row(run / "events.jsonl").get("event")
    return event if event in ("finished", "stopped", "failed") else ""


def _how_it_stopped(run: Path) -> list[str]:
    if _ending(run) == "finished":
        return [f"finished before the stop came: {run}"]
    saved = newest_checkpoint(run)
    if _ending(run) == "failed":
        reason = _last_row(run / "events.jsonl").get("reason")
        said = f"failed: {reason} ({run})"
    elif saved is None:
        return _NOTHING
    else:
        said = f"stopped; newest checkpoint: {saved}"
    resume = f"scripts/start_training.sh {run.parent.name} --resume {run.name}"
    return [said, *([f"go on with: {resume}"] if saved else [])]
