"""How a data loader's worker processes are started."""

import multiprocessing
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

from workloads.signals import held_back


class _Worker(ForkProcess):
    def start(self) -> None:
        with held_back():
            super().start()


class WorkerContext(ForkContext):
    """Linux's own way, with stop signals blocked: a loader whose worker dies of one ends the rank.

    The rank ends its workers itself, once it has saved.
    """

    Process = _Worker

    def __reduce__(self) -> tuple[Any, ...]:
        """The Trainer pickles its arguments into checkpoints, which are read without this class."""
        return multiprocessing.get_context, ("fork",)
