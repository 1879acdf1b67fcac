"""Saves and finds checkpoints on all ranks of a job, with or without a shared disk.

A checkpoint is written under `checkpoints/.staging`, gathered to node 0 where the nodes share no
disk, sealed with digests, and only then gets its name.
"""

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads.engine import distributed
from workloads.engine.pretrained.files import Reporter
from workloads.engine.pretrained.weights import SHARDS
from workloads.errors import UserError
from workloads.run.events import Event
from workloads.run.integrity import (
    PREFIX,
    STAGING,
    publish,
    rotate,
    seal,
    sealed,
    set_aside,
    step_of,
)
from workloads.run.session import Session


class SaveFailed(Exception):
    """A checkpoint could not be written; the older ones are untouched."""


def save(session: Session, step: int, write: Callable[[], None], facts: dict[str, Any]) -> Path:
    """Let every rank `write` into the staging folder, then seal and publish the result.

    Raises SaveFailed on all ranks if it failed on one; nothing half-written stays.
    """
    staging = session.run.checkpoints / STAGING
    _clear(session, staging)
    staged = staging / f"{PREFIX}{step}"
    problem = _try(lambda: _check_space(session))
    problem = _first(problem) or _first(_try(write))
    if problem is None and not session.shared:
        gather_files(session, staged)
    final = session.run.checkpoints / staged.name
    if problem is None and session.is_main:
        problem = _try(lambda: _publish(session, staged, final, facts))
    problem = _first(problem)
    _clear(session, staging)
    if problem is not None:
        raise SaveFailed(problem)
    return final


def _publish(session: Session, staged: Path, final: Path, facts: dict[str, Any]) -> None:
    record = seal(staged, {"step": step_of(staged), "world_size": session.world_size, **facts})
    publish(staged, final)
    size = sum(fact["size"] for fact in record["files"].values())
    session.event(Event.CHECKPOINT, step=step_of(final), bytes=size, path=str(final))


def _check_space(session: Session) -> None:
    """Raise before writing if the disk has less room than the last checkpoint took."""
    old = sealed(session.run.checkpoints)
    if not session.is_main or not old:
        return
    needed = sum(path.stat().st_size for path in old[-1].rglob("*") if path.is_file())
    free = shutil.disk_usage(session.run.path).free
    if free < needed:
        text = f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free"
        if aside := set_aside(session.run.checkpoints):
            text += f"; not used any more: {', '.join(path.name for path in aside)}"
        raise OSError(errno.ENOSPC, text)


def _try(action: Callable[[], None]) -> str | None:
    """The error of writing as text; any other kind of error is a bug and ends the run."""
    try:
        action()
    except OSError as error:
        return f"{error.strerror or error}"
    except Exception as error:
        # torch and safetensors wrap the operating system's error in types of their own.
        if not _is_write_error(error):
            raise
        return str(error).splitlines()[0]
    return None


def _is_write_error(error: BaseException) -> bool:
    signs = ("no space left", "file write failed", "i/o error", "os error", "disk quota")
    names = ("CheckpointException", "SafetensorError")
    text = f"{error} {error.__cause__}".lower()
    return any(sign in text for sign in signs) or type(error).__name__ in names


def _first(problem: str | None) -> str | None:
    """The first problem of any rank, the same on all."""
    return next((text for text in distributed.gather(problem) if text), None)


def _clear(session: Session, staging: Path) -> None:
    """Remove the staging folder, on each node's own disk where they share none."""
    if session.is_main or (not session.shared and session.local_rank == 0):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
    distributed.barrier()


def _other_leaders(session: Session) -> list[int]:
    """The first rank of every node but node 0."""
    found = distributed.gather((session.node, session.rank, session.local_rank))
    return [rank for node, rank, local in found if node != 0 and local == 0]


def gather_files(session: Session, folder: Path) -> None:
    """Copy files that other nodes wrote to node 0's disk."""
    for leader in _other_leaders(session):
        distributed.send_folder(folder, leader, [0])


def spread_files(session: Session, folder: Path) -> None:
    """Copy node 0's checkpoint to the other nodes' disks."""
    targets = _other_leaders(session)
    if targets:
        distributed.send_folder(folder, 0, targets)


def resume_point(session: Session) -> Path | None:
    """The checkpoint to go on from, present on every node; the same on all ranks."""
    found = session.run.resume_point(session.report) if session.is_main else None
    name = distributed.from_main(found.name if found else None)
    if name is None:
        if session.is_main and session.run.metrics.is_file():
            session.report(f"no whole checkpoint in {session.run.checkpoints}: again from step 0")
        return None
    path = session.run.checkpoints / name
    if not session.shared:
        spread_files(session, path)
    distributed.barrier()
    return path


# How a step's samples are split; their product is the global batch.
_SPLIT = ("world_size", "per_device_batch_size", "accumulation_steps")


def same_shape(
    path: Path, facts: dict[str, Any], strategy: str = "", report: Reporter = lambda text: None
) -> None:
    """Refuse to resume where a step could not see the same samples.

    Another number of ranks, or another split of the same global batch, sees the same samples in the
    same steps: states are whole, or resharded by torch where both sides shard. That is reported, as
    dropout then draws other numbers. strategy: how this attempt splits the states. Raises UserError
    that names the difference.
    """
    record = json.loads((path / "complete.json").read_text())
    for name, now in facts.items():
        if name in record and record[name] != now and name not in _SPLIT:
            same = "rows" if name == "data" else "settings"
            raise UserError(
                f"{path.name} was written with {name} {record[name]}, found {now}; use the same "
                f"{same}, or start a new run"
            )
    known = [name for name in _SPLIT if name in record and name in facts]
    before, now = [record[name] for name in known], [facts[name] for name in known]
    if before == now:
        return
    if len(known) < len(_SPLIT) or math.prod(before) != math.prod(now):
        written = ", ".join(f"{name} {record[name]}" for name in known)
        raise UserError(
            f"{path.name} was written with {written}, found "
            f"{', '.join(f'{name} {facts[name]}' for name in known)}: another global batch; set "
            f"train.global_batch_size={math.prod(before)}, or start a new run"
        )
    if (path / SHARDS).is_dir() != (strategy == "fsdp2") or strategy in ("zero2", "zero3"):
        raise UserError(
            f"{path.name} was written by {record['world_size']} ranks, whose states {strategy} on "
            f"{facts['world_size']} cannot take over; use as many ranks as before, or "
            "parallel.strategy=ddp from the start of a run"
        )
    report(
        f"{path.name} was written by {record['world_size']} ranks; going on with "
        f"{facts['world_size']}: the same samples in the same steps, other random numbers"
    )


def tidy(session: Session, keep_last: int, best_step: int | None) -> None:
    """Rotate by number, keeping the newest and the best."""
    if session.is_main:
        folder = session.run.checkpoints
        best = folder / f"{PREFIX}{best_step}" if best_step is not None else None

        def report(problem: str) -> None:
            session.event(Event.CLEANUP_FAILED, reason=problem)
            session.report(f"{folder}: {problem}; the training goes on")

        rotate(folder, keep_last, best, report)
