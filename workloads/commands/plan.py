"""Predict the memory of a GPU and a node, and the disk, that PROFILE needs."""

import argparse
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, print_json, resolved
from workloads.errors import EXIT_DONE, EXIT_FAILED

_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of the GPU to plan for")
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Ends with 1 where the plan does not fit the GPU that is here or was named."""
    from workloads import device
    from workloads.plan.advice import advice
    from workloads.plan.estimate import estimate, fits
    from workloads.plan.table import table

    env = loaded_environment()
    config, _ = resolved(args.profile, env, words)
    here = device.gpus(env)
    breakdown = estimate(config, len(here) or None, env)
    size = (
        int(args.gpu_memory * _GIB)
        if args.gpu_memory
        else min((gpu.total for gpu in here), default=0)
    )
    suffices = fits(breakdown, size) if size else None
    fixes = advice(breakdown, config, size) if size and not suffices else []
    if args.json:
        facts = {"total": breakdown.total, "parts": breakdown.parts, "disk": breakdown.disk}
        print_json({**facts, "unknown": breakdown.unknown, "fits": suffices, "advice": fixes})
    else:
        table(breakdown)
        if suffices is not None:
            print(f"it {'fits' if suffices else 'does not fit'} in a GPU of {size / _GIB:.1f} GiB")
        for fix in fixes:
            print(f"  {fix}")
    return EXIT_FAILED if suffices is False else EXIT_DONE
