"""Render PROFILE for a scheduler and submit it; `--print` shows what would be submitted.

The job saves before its time limit and is requeued, goes on after what is worth retrying (75),
and ends with 3 where somebody stopped it.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment, profile_path, report_ignored
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.cluster.slurm import SlurmJob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", choices=["slurm"], help="the scheduler")
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true", help="print the batch script and end")
    how.add_argument("--check", action="store_true", help="have the scheduler look at it, and end")
    asked = parser.add_argument_group("what is asked for")
    asked.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs on each node")
    asked.add_argument("--cpus", type=int, default=0, metavar="N", help="processors on each node")
    asked.add_argument("--time", default="", metavar="LIMIT", help="as sbatch takes it: 4:00:00")
    asked.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="OPTION",
        help="any further option of sbatch: --option=--partition=gpu",
    )
    asked.add_argument(
        "--array", default="", metavar="SETTING=A,B", help="a job for each value of a setting"
    )
    ends = parser.add_argument_group("ends")
    ends.add_argument(
        "--save-seconds",
        type=int,
        default=300,
        metavar="S",
        help="kept before the time limit for the last step and its checkpoint (default 300)",
    )
    ends.add_argument(
        "--retries", type=int, default=3, metavar="N", help="requeues after 75 (default 3)"
    )
    image = parser.add_argument_group("in an image, instead of this environment")
    image.add_argument("--runtime", choices=["pyxis", "apptainer"], help="what starts the image")
    image.add_argument("--image", default="", help="a .sqsh or .sif file, or an image's address")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads.cluster import slurm

    env = loaded_environment()
    job = _job(args, words, env)
    script = slurm.render(job)
    if args.print:
        print(script, end="")
        return EXIT_DONE
    if shutil.which("sbatch") is None:
        raise UserError(
            "expected sbatch on PATH, found none; do this on a login node of the cluster, or take "
            "the script along: tatara submit slurm … --print"
        )
    job.outputs.mkdir(parents=True, exist_ok=True)
    path = job.outputs / f"slurm-{job.name}.sh"
    path.write_text(script, encoding="utf-8")
    more = ["--test-only"] if args.check else []
    code = subprocess.run(slurm.sbatch(path, more), env=_without_secrets()).returncode
    if code:
        raise UserError(f"sbatch refused {path}; its lines above say why")
    return EXIT_DONE


def _job(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> "SlurmJob":
    from workloads.cluster.slurm import SlurmJob
    from workloads.config.merge import resolve
    from workloads.run import outputs

    if bool(args.runtime) != bool(args.image):
        raise UserError("expected --runtime and --image together, found one of them; add the other")
    path = profile_path(args.profile, env)
    name, _, values = args.array.partition("=")
    array = tuple(values.split(",")) if values else ()
    if args.array and not values:
        raise UserError(f"--array: expected SETTING=A,B, found {args.array!r}; name its values")
    for value in array or [None]:
        # A mistake in a setting is found here, not in the queue.
        own = [*words, *([f"{name}={value}"] if value is not None else [])]
        config, provenance = resolve(path, env, own)
    report_ignored(str(path), provenance)
    return SlurmJob(
        name=config.name,
        profile=str(path),
        settings=tuple(words),
        nodes=config.parallel.nodes,
        outputs=outputs(env).absolute(),
        checkout=Path.cwd(),
        python=sys.executable,
        gpus=args.gpus,
        cpus=args.cpus,
        limit=args.time,
        save_seconds=args.save_seconds,
        retries=args.retries,
        options=tuple(args.option),
        array=(name, array),
        image=args.image,
        runtime=args.runtime or "",
    )


def _without_secrets() -> dict[str, str]:
    """Slurm keeps a job's environment: tokens are left to .env, which the job reads itself."""
    from workloads.environment import is_secret

    return {name: value for name, value in os.environ.items() if not is_secret(name)}
