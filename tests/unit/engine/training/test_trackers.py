"""A tracker that hangs or fails costs a run neither time nor its end."""

import io
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workloads.config.sections import Tracking
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
    usual = trackers._END_WAIT
    monkeypatch.setattr(trackers, "_END_WAIT", 0.2)
    made = Trackers(session, {"hanging": Hanging})
    start = time.monotonic()
    for step in range(12_000):  # more than are ever kept for it
        made.write(step, {"loss": 1.0})
    made.close()
    assert time.monotonic() - start < usual


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(session: Session) -> None:
    good = Good()
    made = Trackers(session, {"failing": Failing, "good": lambda: good})
    for step in (1, 2):
        made.write(step, {"loss": 0.5, "note": "text"})
    made.close()
    assert good.rows == [(1, {"loss": 0.5}), (2, {"loss": 0.5})] and good.closed
    assert session.run.events.read_text().count("tracker failed") == 1


def test_rows_that_did_not_arrive_are_told(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-8: a short run whose tracker takes longer than the run's end waits."""
    monkeypatch.setattr(trackers, "_END_WAIT", 0.05)
    made = Trackers(session, {"hanging": Hanging})
    for step in (1, 2, 3):
        made.write(step, {"loss": 1.0})
    made.close()
    assert "did not end in time" in session.run.events.read_text()


def test_the_end_waits_for_a_tracker_that_begins_slowly(session: Session) -> None:
    """E-8: its rows are there in the end."""
    good, gate = Good(), threading.Event()

    def begin() -> Good:
        gate.wait(10)
        return good

    made = Trackers(session, {"slow": begin})
    made.write(1, {"loss": 1.0, "batches": 17.0})
    closing = threading.Thread(target=made.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert good.rows == [(1, {"loss": 1.0})] and good.closed


def test_steps_that_a_restart_goes_over_again_are_shown_once(tmp_path: Path) -> None:
    """E-11: the curve does not run backwards."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = trackers.TensorBoard(tmp_path, 0)
    for step in range(1, 49):
        first.write(step, {"loss": 1.0})
    first.close()
    second = trackers.TensorBoard(tmp_path, 40)
    for step in range(41, 61):
        second.write(step, {"loss": 2.0})
    second.close()
    curve = EventAccumulator(str(tmp_path))
    curve.Reload()
    steps = [event.step for event in curve.Scalars("loss")]
    assert sorted(steps) == list(range(1, 61)) and len(steps) == 60


class FakeWandb(types.ModuleType):
    """wandb as far as it is used; a start that fails keeps its id until teardown, as in 0.30."""

    class Error(Exception):
        pass

    def __init__(self, refuses: str = "") -> None:
        super().__init__("wandb")
        self.refuses, self.taken = refuses, False
        self.starts: list[dict[str, Any]] = []
        self.rows: list[int] = []
        self.id = "a run/1"
        self.kept: dict[str, list[str]] = {}

    def Artifact(self, name: str, type: str) -> types.SimpleNamespace:  # noqa: N802, A002
        files: list[str] = []
        return types.SimpleNamespace(
            name=name, files=files, add_file=lambda path, name: files.append(name)
        )

    def log_artifact(self, artifact: types.SimpleNamespace) -> None:
        self.kept[artifact.name] = artifact.files

    def finish(self) -> None:
        pass

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def teardown(self) -> None:
        self.taken = False

    def init(self, **settings: Any) -> "FakeWandb":
        if self.taken:
            raise self.Error(f"run ID {settings['id']} is in use")
        self.starts.append(settings)
        if settings["mode"] == "online" and self.refuses:
            self.taken = True
            raise self.Error(self.refuses)
        if settings["mode"] == "offline":
            folder = Path(settings["dir"]) / "wandb" / f"offline-run-{len(self.starts)}"
            folder.with_name(f"{folder.name}-{settings['id']}").mkdir(parents=True)
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append(step)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    made = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def begin(session: Session, mode: str, done_steps: int = 0) -> None:
    tracking = Tracking.model_validate({"wandb": mode})
    trackers.WandB(tracking, session, {"name": "demo"}, done_steps)


def test_a_server_that_refuses_leaves_an_offline_run_and_its_own_sentence(
    session: Session, wandb: FakeWandb
) -> None:
    """E-7: entity, badkey, denied, silent and refused alike."""
    wandb.refuses = "CommError: entity no-such-team\nnot found"
    begin(session, "online")
    assert [start["mode"] for start in wandb.starts] == ["online", "offline"]
    assert "entity no-such-team not found" in session.console.getvalue()  # type: ignore[attr-defined]
    assert "wandb sync" in session.console.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "mode"), [("offline", "offline"), ("disabled", "disabled"), ("", "online")]
)
def test_its_own_variables_win(
    session: Session, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, value: str, mode: str
) -> None:
    """E-9: an empty one is unset."""
    monkeypatch.setenv("WANDB_MODE", value)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    begin(session, "online")
    (start,) = wandb.starts
    assert (start["mode"], start["project"], start["group"]) == (mode, "mine", "demo")


def test_an_offline_run_that_goes_on_is_one_folder_with_every_row(
    session: Session, wandb: FakeWandb
) -> None:
    """E-10: one folder is to be synced, and the profile is in the id."""
    begin(session, "offline")
    for step in (1, 2, 3, 4):
        session.run.metric({"step": step, "loss": 1.0 / step})
    begin(session, "offline", done_steps=3)
    folders = sorted((session.run.path / "wandb").glob("offline-run-*"))
    assert [path.name for path in folders] == [f"offline-run-2-demo-{session.run.id}"]
    assert wandb.rows == [1, 2, 3]


def test_files_are_kept_as_one_artifact_beside_the_rows(session: Session, wandb: FakeWandb) -> None:
    """A tracker that keeps no files is handed none."""
    tracking = Tracking.model_validate({"wandb": "offline"})
    good, folder = Good(), session.run.path
    makers: dict[str, Callable[[], trackers.Tracker]] = {
        "wandb": lambda: trackers.WandB(tracking, session, {"name": "demo"}),
        "good": lambda: good,
    }
    made = Trackers(session, makers)
    made.write(1, {"loss": 1.0})
    made.keep(folder, [folder / "report.html", folder / "evaluation" / "reach.png"])
    made.close()
    assert wandb.kept == {"a-run-1-report": ["report.html", "evaluation/reach.png"]}
    assert wandb.rows == [1] and good.rows == [(1, {"loss": 1.0})] and good.closed


def test_names_and_groups_are_the_runs_and_the_profiles(session: Session, wandb: FakeWandb) -> None:
    begin(session, "online")
    (start,) = wandb.starts
    assert (start["name"], start["group"]) == (session.run.id, "demo")
    assert start["id"] == f"demo-{session.run.id}" and start["project"] == "tatara"
