"""The run directory: a public format that training writes and every other tool only reads.

outputs/<profile>/<run-id>/ holds config.json, manifest.json, metrics.jsonl,
evaluations.jsonl, events.jsonl, status/<rank>.json, logs/, checkpoints/, evaluation/ and final/;
docs/run-directory.md describes it.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import EXIT_STOPPED, UserError
from workloads.missing_files import lost_link
from workloads.run.events import Event
from workloads.run.integrity import newest_whole, sealed

FORMAT = 1


def new_id() -> str:
    """A run id that sorts by time and does not collide: date, time, four random digits."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


def rows_in(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's .jsonl file; none without the file, and without a line that was cut."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def now() -> dict[str, Any]:
    """Both clocks: wall time for people, monotonic time for order."""
    return {"time": round(time.time(), 3), "monotonic": round(time.monotonic(), 3)}


def _warn(text: str) -> None:
    print(f"tatara: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Run:
    """One run's directory; cheap to construct, opens nothing."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def samples(self) -> Path:
        """File of held-out questions that a language model answered during training."""
        return self.evaluation / "samples.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def make(self) -> None:
        """Create the directory and its folders; raises UserError where that is not possible."""
        try:
            for folder in ("status", "logs", "checkpoints", "evaluation"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be created: {lost_link(self.path) or error.strerror}; choose "
                "another folder with TATARA_OUTPUTS, or give yourself the right to write there"
            ) from None

    def end_cut_lines(self) -> None:
        """End the lines that a crash has cut: the next one would be lost behind them."""
        for path in (self.metrics, self.evaluations, self.events):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def event(self, name: Event, **facts: Any) -> None:
        """Append one event; a full disk must not end a run because of an event."""
        self._append(self.events, {**now(), "event": name, **facts})

    def metric(self, row: dict[str, Any]) -> None:
        """Append one row of training."""
        self._append(self.metrics, {**row, **now()})

    def eval_metric(self, row: dict[str, Any]) -> None:
        """Append one row of an evaluation on held-out rows."""
        self._append(self.evaluations, {**row, **now()})

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        text = json.dumps(json_ready(row), ensure_ascii=False) + "\n"
        # A lone surrogate, as of a file name that is no UTF-8, becomes its JSON escape.
        line = text.encode("utf-8", "backslashreplace")
        try:
            # One write of one line with O_APPEND: lines of several processes never mix.
            with path.open("ab", buffering=0) as file:
                written = file.write(line)
                if written < len(line):  # the next line would be lost behind a half one
                    file.truncate(file.tell() - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            print(f"tatara: {path.name} could not be written: {error.strerror}", file=sys.stderr)

    def config(self) -> Any:
        """The frozen config that this run was started with."""
        from workloads.config.merge import load_dump

        return load_dump(self.path / "config.json", FORMAT)

    def write_status(self, rank: int, status: dict[str, Any]) -> None:
        """Replace a rank's heartbeat."""
        path = self.path / "status" / f"{rank}.json"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        # No fsync: a heartbeat is worthless after a power failure, and is written every second.
        beside.write_text(json.dumps(json_ready({**status, **now()})))
        os.replace(beside, path)

    def statuses(self) -> dict[int, dict[str, Any]]:
        """The last heartbeat of every rank."""
        found = {}
        for path in (self.path / "status").glob("[0-9]*.json"):
            try:
                status = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(status, dict) and path.stem.isdecimal():
                found[int(path.stem)] = status
        return dict(sorted(found.items()))

    def resume_point(self, report: Callable[[str], None] = _warn) -> Path | None:
        """The newest whole checkpoint; damaged ones are set aside, with an event and a message."""

        def damaged(text: str) -> None:
            report(text)
            self.event(Event.CHECKPOINT_DAMAGED, text=text)

        return newest_whole(self.checkpoints, damaged)

    def stop_code(self, number: int) -> int:
        """The exit code of a stop by a signal: 3 where a checkpoint is there, else 130 or 143."""
        return EXIT_STOPPED if sealed(self.checkpoints) else 128 + number


def json_ready(value: Any) -> Any:
    """Values for JSON, which has no NaN: as the names that Python reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def outputs(env: dict[str, str] | os._Environ[str]) -> Path:
    """The folder of runs: TATARA_OUTPUTS, or `outputs` here."""
    return Path(env.get("TATARA_OUTPUTS") or "outputs")


def named(runs: Sequence[Path], wanted: str) -> list[Path]:
    """Of run folders, the newest first, those that a name means; more than one where it is unclear.

    wanted: `latest`, an id or `profile/id`, a profile, whose newest is meant, or the start of an
    id or of `profile/id`.
    """
    names = [(path, path.name, f"{path.parent.name}/{path.name}") for path in runs]
    if exact := [path for path, *own in names if wanted in own]:
        return exact
    if newest := [path for path in runs if wanted in ("latest", path.parent.name)][:1]:
        return newest
    return [path for path, *own in names if wanted and any(n.startswith(wanted) for n in own)]


def find(root: Path, profile: str, wanted: str) -> Run:
    """A run by its folder, or by what `named` takes; UserError names what there is.

    profile: the one it must belong to, `*` for any.
    """
    if (Path(wanted) / "config.json").is_file():
        return Run(Path(wanted))
    dumps = root.glob(f"{profile}/*/config.json")
    ordered = sorted(dumps, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    known = [path.parent for path in ordered]
    found = named(known, wanted)
    if len(found) == 1:
        return Run(found[0])
    names = ", ".join(path.name for path in reversed(known[:5]))
    have = f"runs there: {names}" if names else "there are none yet"
    many = f"{len(found)} runs of that name" if found else f"no {wanted!r}"
    where = root if profile == "*" else root / profile
    raise UserError(f"expected a run in {where}, found {many}; {have}")
