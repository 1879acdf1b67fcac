"""`python3 -m workloads.doctor [PROFILE]`: the doctor on a machine with nothing but Python."""

import argparse
import sys

from workloads.errors import TataraError
from workloads.signals import interruptible


def run() -> int:
    """Parse this process's arguments and look; the exit code."""
    from workloads.doctor.command import (
        add_arguments,
        main,
    )  # here a Ctrl-C is no traceback any more

    parser = argparse.ArgumentParser(prog="tatara doctor", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    args, words = parser.parse_known_args()
    try:
        return main(args, words)
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(interruptible(run))
