"""Start a run of PROFILE, or go on with one. Ends with 0 done, 2 a mistake to mend, 3 stopped and
saved, 75 worth another try, 1 anything else."""

import argparse
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, profile_path, report_ignored
from workloads.config import resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="RUN",
        help="go on with a run: its id, its folder, or latest (the default)",
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads import device
    from workloads.check import before_start
    from workloads.launch import Job, launch

    env = loaded_environment()
    if args.resume and "=" in args.resume:
        words, args.resume = [args.resume, *words], "latest"
    path = profile_path(args.profile, env)
    config, provenance = resolve(path, env, words)
    command = ["train", str(path), *words]
    job = Job(config, provenance, env, command, args.resume, device.gpu_count(env))
    if not job.is_spoken_for:
        report_ignored(str(path), provenance)
        before_start(job)
    return launch(job)
