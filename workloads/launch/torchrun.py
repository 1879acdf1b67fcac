"""torchrun as a child process whose exit code tells how its ranks ended.

torchrun itself ends with 1 for every failure. This module passes on 128 + N where signal N ended a
rank, else the first failed rank's exit code.

It is started with stop signals blocked and never lets them through: torchrun would pass each on to
the ranks and kill those that still save 30 s later. The ranks unblock them once their handlers are
set.
"""

import os
import signal
import sys
from typing import TYPE_CHECKING

from workloads.errors import EXIT_FAILED
from workloads.processes import PARENT, die_with_parent, quick_imports

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def main() -> int:
    """Run torchrun with this process's arguments."""
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())
    with quick_imports():
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        first = min(error.failures.values(), key=_explains)
        code = first.exitcode
        return 128 - code if code < 0 else code or EXIT_FAILED
    return 0


def _explains(failure: "ProcessFailure") -> tuple[bool, bool, float]:
    """Sort key: the cause before its consequences.

    What torchrun saw at one look has one time, in whole seconds. A rank that a signal ended is the
    cause then: its peers lost it, or NCCL aborted them. torchrun's own signals come later.
    """
    code = failure.exitcode
    return code >= 0, code == -signal.SIGABRT, failure.timestamp


if __name__ == "__main__":
    sys.exit(main())
