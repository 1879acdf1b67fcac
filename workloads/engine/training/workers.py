"""Start method of a data loader's worker processes."""

import multiprocessing
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

from workloads.signals import held_back


class _Worker(ForkProcess):
    def start(self) -> None:
        with held_back():
            super().start()


class WorkerContext(ForkContext):
    """Linux's start method, with stop signals blocked: a worker that dies of one ends its rank.

    The rank ends its workers itself, once it has saved.
    """

    Process = _Worker

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a plain string: checkpoints with it are read without this class."""
        return multiprocessing.get_context, ("fork",)
