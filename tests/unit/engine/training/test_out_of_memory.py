"""Micro-batches that get smaller where a run has been out of memory, at the same global batch."""

import io
from pathlib import Path

import pytest
import torch

from workloads.config.merge import resolve
from workloads.config.sections import Profile
from workloads.engine.training.out_of_memory import micro_batch, out_of_memory
from workloads.errors import EXIT_FAILED, EXIT_RETRY
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit
DEMO = Path(__file__).resolve().parents[4] / "profiles" / "demo.yaml"
ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(DEMO.parents[1])
    run = Run(tmp_path / "run")
    run.make()
    return Session(run=run, world_size=2, _console=io.StringIO())


def config(size: int, wish: str = "halve") -> Profile:
    words = [f"train.per_device_batch_size={size}", f"train.on_out_of_memory={wish}"]
    made: Profile = resolve(DEMO, {}, words)[0]
    return made


@pytest.mark.parametrize(
    ("size", "failed", "expected"),
    [
        (8, [], (8, 1)),
        (8, [8], (4, 2)),
        (8, [8, 4], (2, 4)),
        (8, [8, 8, 8], (4, 2)),  # every rank tells of the same one
        (6, [6], (3, 2)),
        (3, [3], (1, 3)),
        (2, [8], (2, 1)),  # set smaller since
        (16, [8], (4, 4)),
    ],
)
def test_what_did_not_fit_is_not_tried_again(
    session: Session, size: int, failed: list[int], expected: tuple[int, int]
) -> None:
    for rank in failed:
        session.run.event("oom", per_device_batch_size=rank)
    with session.run.events.open("a") as file:
        file.write('{"event": "oom", "per_dev')  # cut short by a kill
    assert micro_batch(config(size), session) == expected
    assert micro_batch(config(size, "stop"), session) == (size, 1)


def test_out_of_memory_is_worth_a_retry_while_there_are_smaller_ones(session: Session) -> None:
    error = out_of_memory(config(4), session, 4, ERROR)
    assert error.exit_code == EXIT_RETRY and "fewer than 4 rows" in str(error)
    assert micro_batch(config(4), session) == (2, 2)
    last = out_of_memory(config(4), session, 1, ERROR)
    assert last.exit_code == EXIT_FAILED and "try one of these" in str(last)
    stop = out_of_memory(config(4, "stop"), session, 4, ERROR)
    assert stop.exit_code == EXIT_FAILED and "try one of these" in str(stop)
