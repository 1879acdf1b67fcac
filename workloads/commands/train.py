"""Start a run of PROFILE, or go on with one. Ends with 0 done, 2 a mistake to fix, 3 stopped and
saved, 75 worth retrying, 1 anything else."""

import argparse
from collections.abc import Sequence

from workloads.commands.common import (
    loaded_environment,
    profile_path,
    report_ignored,
    resolved_to_fit,
)
from workloads.config.merge import BY_METHOD, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="RUN",
        help="go on with a run: folder, id or its start, latest (the default)",
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads import device
    from workloads.check import before_start
    from workloads.launch.supervisor import Job, fewer_nodes, launch

    env = loaded_environment()
    if args.resume and "=" in args.resume:
        words, args.resume = [args.resume, *words], "latest"
    path = profile_path(args.profile, env)
    gpus = device.gpu_count(env)
    config, provenance, words = resolved_to_fit(path, env, words)
    if nodes := fewer_nodes(config.parallel.nodes, env, gpus):
        print(f"{gpus} GPU here for {config.parallel.nodes} nodes: parallel.nodes={nodes}")
        words = [*words, f"parallel.nodes={nodes}"]
        config, provenance = resolve(path, env, words)
    job = Job(config, provenance, env, ["train", str(path), *words], args.resume, gpus)
    if not job.is_spoken_for:
        report_ignored(str(path), provenance)
        _show_learning_rate(config.optim.learning_rate, provenance["optim.learning_rate"])
        before_start(job)
    return launch(job)


def _show_learning_rate(rate: float, source: str) -> None:
    if source == "default" or source.startswith(BY_METHOD):
        print(f"optim.learning_rate = {rate:g}   ({source})", flush=True)
