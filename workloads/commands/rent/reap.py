"""End machines of ours whose deadline is over: for cron, or a scheduled workflow.

Ours are those whose name carries a deadline. A lease of this checkout is saved first, within its
bounds; any other machine is ended a quarter of an hour after its deadline.
"""

import argparse
import sys

from workloads.errors import EXIT_DONE, EXIT_FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    return None


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    import signal

    from workloads.rent.clock import Clock
    from workloads.rent.lease import Lease
    from workloads.rent.ledger import Ledger, ledgers
    from workloads.rent.machines import reap
    from workloads.rent.opening import cloud, lease_of
    from workloads.run import outputs
    from workloads.signals import Stop

    clock = Clock()
    provider = cloud(env, clock)

    def carried(ledger: Ledger) -> Lease:
        stop = Stop()
        stop.on_signal(signal.SIGTERM, None)
        return lease_of(ledger, env, stop, clock)

    every = [item for item in ledgers(outputs(env).absolute(), print) if item.is_open]
    failed = reap(provider, every, carried, print, clock)
    for line in failed:
        print(f"tatara: {line}", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_DONE
