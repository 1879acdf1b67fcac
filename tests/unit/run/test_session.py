"""A rank's phases and its heartbeat, without a training."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workloads.errors import Stopped
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit


class SlowRun(Run):
    """A run on a disk that keeps its first heartbeat waiting until it is let go."""

    held = threading.Event()
    free = threading.Event()

    def write_status(self, rank: int, status: dict[str, Any]) -> None:
        if "code" not in status:
            self.held.set()
            self.free.wait(10)
        super().write_status(rank, status)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    run = Run(tmp_path / "run")
    run.make()
    yield Session(run, _status={"phase": "training", "progress": 0, "beat": 0})


def test_the_last_word_is_never_written_over_by_a_late_heartbeat(tmp_path: Path) -> None:
    run = SlowRun(tmp_path / "run")
    run.make()
    session = Session(run, _status={"phase": "training", "progress": 0, "beat": 0})
    late = threading.Thread(target=session._write)
    late.start()
    assert run.held.wait(10)
    last = threading.Thread(target=session.finish, args=("done", 0))
    last.start()
    last.join(0.2)  # without the order it would be through by now
    run.free.set()
    late.join(10)
    last.join(10)
    assert run.statuses()[0]["phase"] == "done"
    assert run.statuses()[0]["code"] == 0


def test_a_phase_that_fails_is_left(session: Session) -> None:
    with pytest.raises(OSError), session.phase("saving"):
        assert session._status["phase"] == "saving"
        raise OSError("no space left")
    assert session._status["phase"] == "training"


def test_a_stop_is_honoured_at_the_door_of_a_phase_with_nothing_to_lose(session: Session) -> None:
    session.stop_signal = signal.SIGTERM
    with session.phase("saving"):
        pass
    with pytest.raises(Stopped, match="nothing was lost"):
        session.enter("preparing")
