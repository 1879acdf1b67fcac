"""A rank's life around code that a benchmark runs in its own process."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from workloads.run import Run
from workloads.run.events import Phase
from workloads.run.session import Session


@contextlib.contextmanager
def rank_session(folder: Path) -> Iterator[Session]:
    """A session as a rank begins one; the standard streams are given back after it."""
    run = Run(folder / "run")
    run.make()
    session = Session(run)
    kept = [os.dup(1), os.dup(2)]
    session.begin()
    session.enter(Phase.TRAINING)
    try:
        yield session
    finally:
        session.finish(Phase.DONE, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(kept, start=1):
            os.dup2(saved, number)
            os.close(saved)
