"""torchrun as a child process whose exit code tells how its ranks ended.

torchrun itself ends with 1 for every failure. This module passes on the first failed rank's exit
code, or 128 + N where signal N ended it.

It is started with stop signals blocked and never lets them through: torchrun would pass each on to
the ranks and kill those that still save 30 s later. The ranks unblock them once their handlers are
set.
"""

import os
import sys

from workloads.errors import EXIT_FAILED
from workloads.processes import PARENT, die_with_parent, quick_imports


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
        # Sorted by time: the first one is the cause, the others lost their peer.
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        code = first.exitcode
        return 128 - code if code < 0 else code or EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
