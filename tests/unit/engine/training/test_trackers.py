"""A tracker that hangs or fails costs a run neither time nor its end."""

import io
import threading
import time
from pathlib import Path

import pytest

from workloads.engine.training import trackers
from workloads.engine.training.trackers import Trackers
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit


@pytest.fixture
def session(tmp_path: Path) -> Session:
    run = Run(tmp_path / "run")
    run.make()
    return Session(run=run, _console=io.StringIO())


class Hanging:
    """Takes a row and never comes back."""

    def write(self, step: int, row: dict[str, float]) -> None:
        threading.Event().wait()

    def close(self) -> None:
        raise AssertionError("a tracker that hangs is not asked to flush")


class Failing(Hanging):
    """Cannot take a row."""

    def write(self, step: int, row: dict[str, float]) -> None:
        raise ConnectionError("no route to host")


class Good:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step: int, row: dict[str, float]) -> None:
        self.rows.append((step, row))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_that_hangs_delays_neither_a_row_nor_the_end(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_END_WAIT", 0.2)
    made = Trackers(session, {"hanging": Hanging})
    start = time.monotonic()
    for step in range(12_000):  # more than are ever kept for it
        made.write(step, {"loss": 1.0})
    made.close()
    assert time.monotonic() - start < 5


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(session: Session) -> None:
    good = Good()
    made = Trackers(session, {"failing": Failing, "good": lambda: good})
    for step in (1, 2):
        made.write(step, {"loss": 0.5, "note": "text"})
    made.close()
    assert good.rows == [(1, {"loss": 0.5}), (2, {"loss": 0.5})] and good.closed
    assert session.run.events.read_text().count("tracker failed") == 1
