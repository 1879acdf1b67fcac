"""TensorBoard and Weights & Biases beside the run's own files, on a thread of their own.

The run's files are the truth. A tracker that cannot be reached is told of once; training neither
waits for it nor fails with it.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from workloads.config.sections import Tracking
from workloads.run.events import Event
from workloads.run.session import Session

_END_WAIT = 10.0  # seconds that trackers get to flush at the end of a run
_INIT_WAIT = 20.0


class Tracker(Protocol):
    """One place that rows of metrics go to."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run on Weights & Biases under the run's own id; offline where it cannot be reached."""

    def __init__(self, tracking: Tracking, session: Session, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        def begin(mode: Literal["online", "offline", "disabled", "shared"]) -> Any:
            return wandb.init(
                project=tracking.wandb_project,
                entity=tracking.wandb_entity,
                id=session.run.id,
                name=session.run.id,
                resume="allow",
                dir=str(session.run.path),
                mode=mode,
                config=config,
                settings=wandb.Settings(init_timeout=_INIT_WAIT, console="off"),
            )

        try:
            self._run = begin("online" if tracking.wandb == "online" else "offline")
        except wandb.Error as error:
            if tracking.wandb == "offline":
                raise
            self._run = begin("offline")
            reason = str(error).splitlines()[0]
            session.tell(f"wandb: not reachable ({reason}); kept in {session.run.path}/wandb")

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """All trackers of a run; `write` returns at once."""

    def __init__(self, session: Session, makers: dict[str, Callable[[], Tracker]]) -> None:
        self._session, self._makers = session, makers
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._work, daemon=True)
        if makers:
            self._thread.start()

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Hand over the numbers of a row; they are dropped where nobody takes them in time."""
        if not self._makers or self._rows.full():
            return
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        self._rows.put_nowait((step, numbers))

    def close(self) -> None:
        """Flush, but never wait long."""
        if not self._makers:
            return
        with contextlib.suppress(queue.Full):  # a tracker that hangs takes no row any more
            self._rows.put(None, timeout=_END_WAIT)
            self._thread.join(_END_WAIT)

    def _work(self) -> None:
        live: dict[str, Tracker] = {}

        def begin(name: str) -> None:
            live[name] = self._makers[name]()

        for name in self._makers:
            self._try(name, lambda: begin(name))  # noqa: B023  called at once
        while (item := self._rows.get()) is not None:
            step, row = item
            for name in list(live):
                if not self._try(name, lambda: live[name].write(step, row)):  # noqa: B023
                    del live[name]
        for name, tracker in live.items():
            self._try(name, tracker.close)

    def _try(self, name: str, action: Callable[[], None]) -> bool:
        """Whether it worked; one line where a tracker fails, whose libraries raise anything."""
        try:
            action()
            return True
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._session.tell(f"{name}: {reason}; going on without it, metrics.jsonl has all rows")
            self._session.event(Event.TRACKER_FAILED, tracker=name, reason=reason)
            return False


def trackers(tracking: Tracking, session: Session, config: dict[str, Any]) -> Trackers:
    """The trackers that the config asks for; only rank 0 has any."""
    makers: dict[str, Callable[[], Tracker]] = {}
    if session.is_main and tracking.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(session.run.path / "tensorboard")
    if session.is_main and tracking.wandb != "off":
        makers["wandb"] = lambda: WandB(tracking, session, config)
    return Trackers(session, makers)
