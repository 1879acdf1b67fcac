"""`python3 -m workloads.host COMMAND …` for scripts: see command.py."""

import sys

from workloads.signals import interruptible


def run() -> int:
    """Answer one question; the exit code."""
    # Not before: from here on a Ctrl-C is no traceback.
    from workloads.host.command import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(interruptible(run))
