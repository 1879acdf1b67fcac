"""Stop signals: who acts on them, when a repeated one means now, and the exit code."""

import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkContext
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from workloads import signals
from workloads.engine.training.workers import WorkerContext
from workloads.signals import Interrupted, Stop, handled_by, held_back, interrupt

pytestmark = pytest.mark.unit
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("sent", "now"),
    [
        ([(0, TERM)], False),
        ([(0, TERM), (0.3, TERM), (1.9, TERM)], False),
        ([(0, TERM), (2.0, TERM)], True),
        ([(0, INT), (0.3, INT)], True),
        ([(0, INT), (0.3, TERM)], False),
        ([(0, TERM), (0.3, INT)], False),
        ([(0, TERM), (0.3, INT), (0.6, INT)], True),
    ],
)
def test_when_a_further_signal_means_now(
    monkeypatch: pytest.MonkeyPatch, sent: list[tuple[float, int]], now: bool
) -> None:
    """O-S1: Slurm and torchrun repeat themselves; a person presses Ctrl-C twice."""
    stop, clock = Stop(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert stop() == 0
    for at, number in sent:
        clock[0] = at
        stop.on_signal(number, None)
    assert stop() == sent[0][1]
    assert stop.now is now


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)])
def test_what_is_cut_short_ends_as_shells_have_it(number: int, code: int) -> None:
    """A second signal, which comes while the interpreter ends, does not change the exit code."""
    program = (
        "import signal, sys, time; from workloads import signals\n"
        f"def work(): signal.raise_signal({int(number)}); time.sleep(10)\n"
        "code = signals.interruptible(work)\n"
        f"signal.raise_signal({int(number)}); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "tatara: stopped\n")


def test_once_it_is_known_how_a_process_ends_no_signal_changes_it() -> None:
    """A person who goes on pressing Ctrl-C; each level of the program has handlers of its own."""
    code = (
        "import signal, sys; from workloads import signals\n"
        "def work(): signals.ignore(); signal.raise_signal(signal.SIGINT); return 3\n"
        "code = signals.interruptible(lambda: signals.interruptible(work))\n"
        "signal.raise_signal(signal.SIGINT); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_signal_that_was_held_back_is_heard_by_the_first_handler() -> None:
    heard: list[int] = []
    with held_back():
        signal.raise_signal(TERM)  # to this thread: others of libraries may be there
        assert not heard
        with handled_by(lambda number, frame: heard.append(number)):
            assert heard == [TERM]


def test_what_is_started_held_back_does_not_die_of_a_stop() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"
    with held_back():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "alive\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_an_interrupted_import_is_not_taken_for_a_missing_package() -> None:
    with pytest.raises(Interrupted), handled_by(interrupt):
        try:
            signals.interrupt(TERM, None)
        except Exception as error:
            raise AssertionError("a library would go on without what it imports") from error


class _Own(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> int:
        os.kill(os.getpid(), TERM)
        return number


def test_a_data_loader_s_worker_does_not_die_of_a_stop() -> None:
    """O-S1: or the rank would end with 1, before it has saved."""
    context: Any = WorkerContext()
    loader = DataLoader(_Own(), num_workers=1, multiprocessing_context=context)
    assert [int(batch) for batch in loader] == [0]
    assert type(pickle.loads(pickle.dumps(context))) is ForkContext, "readable without this package"
