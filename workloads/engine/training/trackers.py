"""TensorBoard and Weights & Biases beside the run's own files, on a thread of their own.

The run's files are the record. An unreachable tracker is reported once; training neither waits for
it nor fails with it.
"""

import contextlib
import os
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from workloads.config.sections import Tracking
from workloads.engine.summary import rows_of
from workloads.run.events import Event
from workloads.run.session import Session

_END_WAIT = 10.0  # seconds that trackers get to flush at the end of a run
_INIT_WAIT = 20.0
# seconds until every tracker has begun: one failed start, and a second one offline
_BEGIN_WAIT = _INIT_WAIT + 25.0
_LONGEST = 500  # characters shown of a server's message


class Tracker(Protocol):
    """A destination for rows of metrics."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard`; steps that a restart repeats are shown once."""

    def __init__(self, folder: Path, done_steps: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = done_steps + 1 if done_steps else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run on Weights & Biases, one over all restarts; offline where it cannot be reached.

    W&B's own variables win over the profile: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME,
    WANDB_RUN_ID, WANDB_RUN_GROUP. An empty one counts as unset. An offline folder holds every row
    of the run: a restart fills a new one from the run's own files and replaces the one before, so
    that only one has to be synced.
    """

    def __init__(
        self, tracking: Tracking, session: Session, config: dict[str, Any], done_steps: int = 0
    ) -> None:
        env = os.environ
        for name in [name for name in env if name.startswith("WANDB") and not env[name].strip()]:
            del env[name]
        env.setdefault("WANDB_SILENT", "true")
        import wandb

        profile = str(config.get("name") or session.run.path.parent.name)
        mode = env.get("WANDB_MODE", "online" if tracking.wandb == "online" else "offline")

        def begin(mode: str) -> Any:
            if mode in ("offline", "dryrun"):
                _set_offline_aside(session.run.path / "wandb", run_id)
            return wandb.init(
                project=env.get("WANDB_PROJECT") or tracking.wandb_project,
                entity=env.get("WANDB_ENTITY") or tracking.wandb_entity,
                id=run_id,
                name=env.get("WANDB_NAME") or session.run.id,
                group=env.get("WANDB_RUN_GROUP") or profile,
                resume="allow",
                dir=str(session.run.path),
                mode=cast(Any, mode),
                config=config,
                settings=wandb.Settings(init_timeout=_INIT_WAIT, console="off"),
            )

        run_id = env.get("WANDB_RUN_ID") or f"{profile}-{session.run.id}"
        try:
            self._run = begin(mode)
        except wandb.Error as error:
            if mode != "online":
                raise
            # W&B keeps the id of the failed start, and would refuse it to the second.
            wandb.teardown()
            mode, self._run = "offline", begin("offline")
            reason = " ".join(str(error).split())[:_LONGEST]
            session.event(Event.TRACKER_FAILED, tracker="wandb", reason=reason)
            session.report(
                f"wandb: {reason}; every row is kept in {session.run.path}/wandb, to be sent by "
                "wandb sync"
            )
        if mode in ("offline", "dryrun") and done_steps:
            for row in rows_of(session.run):
                if row["step"] <= done_steps:
                    self.write(row["step"], numbers(row))

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def keep(self, folder: Path, files: Sequence[Path]) -> None:
        """Keep files below a folder as one artifact of the run, under their names there."""
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"{self._run.id}-report", flags=re.ASCII)
        artifact = wandb.Artifact(name, type="report")
        for file in files:
            artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


def _set_offline_aside(folder: Path, run_id: str) -> None:
    """Move aside offline folders of earlier attempts; the next one has all their rows."""
    for path in sorted(folder.glob(f"offline-run-*-{run_id}")):
        aside = folder / "superseded"
        aside.mkdir(exist_ok=True)
        path.rename(aside / path.name)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row that make a curve, without the digest of the batch's rows."""
    kept = {name: value for name, value in row.items() if name not in ("step", "batches")}
    return {name: float(value) for name, value in kept.items() if isinstance(value, int | float)}


class Trackers:
    """All trackers of a run; `write` returns at once."""

    def __init__(self, session: Session, makers: dict[str, Callable[[], Tracker]]) -> None:
        self._session, self._makers = session, makers
        self._work_left: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(10_000)
        self._begun = threading.Event()
        self._lost = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        if makers:
            self._thread.start()

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Queue the numbers of a row; those that a full queue drops are counted."""
        if not self._makers:
            return
        kept = numbers(row)
        self._hand_over(lambda tracker: tracker.write(step, kept))

    def keep(self, folder: Path, files: Sequence[Path]) -> None:
        """Pass files below a folder to the trackers that keep files."""

        def keep(tracker: Tracker) -> None:
            if isinstance(tracker, WandB):
                tracker.keep(folder, files)

        if self._makers:
            self._hand_over(keep)

    def _hand_over(self, action: Callable[[Tracker], None]) -> None:
        try:
            self._work_left.put_nowait(action)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Flush with a time limit: long for a tracker that still starts, short for its end.

        A second call does nothing.
        """
        if not self._makers or self._closed:
            return
        self._closed = True
        self._begun.wait(_BEGIN_WAIT)
        with contextlib.suppress(queue.Full):  # a hanging tracker accepts no more rows
            self._work_left.put(None, timeout=_END_WAIT)
            self._thread.join(_END_WAIT)
        left = self._lost + self._work_left.qsize()
        if self._thread.is_alive() or left:
            reason = f"did not end in time; the last {max(left, 1)} rows may not have reached it"
            for name in self._makers:
                self._report(name, reason)

    def _work(self) -> None:
        live: dict[str, Tracker] = {}

        def begin(name: str) -> None:
            live[name] = self._makers[name]()

        for name in self._makers:
            self._try(name, lambda: begin(name))  # noqa: B023  called at once
        self._begun.set()
        while (action := self._work_left.get()) is not None:
            for name in list(live):
                if not self._try(name, lambda: action(live[name])):  # noqa: B023
                    del live[name]
        for name, tracker in live.items():
            self._try(name, tracker.close)

    def _try(self, name: str, action: Callable[[], None]) -> bool:
        """Call a tracker and return whether it worked; reports any error of its library."""
        try:
            action()
            return True
        except Exception as error:
            self._report(name, " ".join(str(error).split())[:_LONGEST] or type(error).__name__)
            return False

    def _report(self, name: str, reason: str) -> None:
        self._session.report(f"{name}: {reason}; going on without it, metrics.jsonl has all rows")
        self._session.event(Event.TRACKER_FAILED, tracker=name, reason=reason)


def trackers(
    tracking: Tracking, session: Session, config: dict[str, Any], done_steps: int = 0
) -> Trackers:
    """The trackers that the config asks for, of a run that goes on after `done_steps`; only rank 0
    has any."""
    makers: dict[str, Callable[[], Tracker]] = {}
    if session.is_main and tracking.tensorboard:
        folder = session.run.path / "tensorboard"
        makers["tensorboard"] = lambda: TensorBoard(folder, done_steps)
    if session.is_main and tracking.wandb != "off":
        makers["wandb"] = lambda: WandB(tracking, session, config, done_steps)
    return Trackers(session, makers)
