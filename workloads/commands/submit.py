"""Render PROFILE for a scheduler and submit it; `--print` shows what would be submitted, `--check`
has it validated.

The job saves before its time limit, goes on after what is worth retrying (75), and ends with 3
where somebody stopped it.
"""

import argparse
import math
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import loaded_environment, profile_path, report_ignored
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.cluster.job import ClusterJob
    from workloads.cluster.slurm import SlurmJob

# Options that only some of the engines have: the others refuse them.
_OWN = {
    "slurm": ("time", "array", "runtime", "save_seconds"),
    "sky": (
        "run_id",
        "infra",
        "gpu_type",
        "max_hourly_cost",
        "idle_minutes",
        "bucket",
        "like",
        "save_seconds",
    ),
    "trainjob": ("run_id", "volume", "secret", "queue", "namespace", "shm"),
}
_AMOUNTS = (
    "gpus",
    "cpus",
    "hours",
    "retries",
    "save_seconds",
    "idle_minutes",
    "max_hourly_cost",
)
_INSTALL = {
    "sky": 'install SkyPilot into an environment of its own: uv tool install "skypilot[lambda]"',
    "kubectl": "install it, with a kubeconfig of a cluster that has Kubeflow Trainer 2.3",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "engine",
        choices=list(_OWN),
        help="slurm: a batch script; sky: a task of SkyPilot; trainjob: Kubeflow Trainer",
    )
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true", help="print what would be submitted, and end")
    how.add_argument("--check", action="store_true", help="have it validated, and end")
    asked = parser.add_argument_group("what is asked for")
    asked.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs on each node")
    asked.add_argument("--cpus", type=int, default=0, metavar="N", help="processors on each node")
    asked.add_argument("--hours", type=float, default=0, metavar="H", help="time limit in hours")
    asked.add_argument("--image", default="", help="an image's address, or a .sqsh or .sif file")
    asked.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="OPTION",
        help="any further option of the engine's command: --option=--partition=gpu",
    )
    ends = parser.add_argument_group("ends")
    ends.add_argument(
        "--save-seconds",
        type=int,
        metavar="S",
        help="kept before the time limit for the last step and its checkpoint (default 300)",
    )
    ends.add_argument(
        "--retries", type=int, default=3, metavar="N", help="restarts after 75 (default 3)"
    )
    ends.add_argument(
        "--run-id", metavar="ID", help="sky, trainjob: go on with this run (default: a new one)"
    )
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--time", metavar="LIMIT", help="as sbatch takes it: 4:00:00")
    slurm.add_argument("--array", metavar="SETTING=A,B", help="a job for each value of a setting")
    slurm.add_argument(
        "--runtime", choices=["pyxis", "apptainer"], help="what starts --image on a node"
    )
    sky = parser.add_argument_group("sky")
    sky.add_argument("--infra", metavar="CLOUD[/REGION]", help="where to rent: lambda/us-east-1")
    sky.add_argument("--gpu-type", metavar="NAME", help="what to rent: H100")
    sky.add_argument(
        "--max-hourly-cost", type=float, metavar="X", help="rent nothing dearer, in dollars"
    )
    sky.add_argument(
        "--idle-minutes",
        type=int,
        metavar="N",
        help="from the job's end until the machines are ended (default 60; 5 with --bucket)",
    )
    sky.add_argument("--bucket", metavar="URL", help="where the run is copied at its end: s3://…")
    sky.add_argument("--like", metavar="PROFILE", help="the one whose services train your own")
    trainjob = parser.add_argument_group("trainjob")
    trainjob.add_argument(
        "--volume", metavar="CLAIM", help="claim for outputs and downloads (default tatara)"
    )
    trainjob.add_argument("--secret", metavar="NAME", help="Secret of tokens (default tatara)")
    trainjob.add_argument("--queue", metavar="NAME", help="Kueue's queue")
    trainjob.add_argument("--namespace", metavar="NAME", help="(default: kubectl's own)")
    trainjob.add_argument("--shm", metavar="SIZE", help="/dev/shm of a node (default 16Gi)")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    for name in sorted({name for own in _OWN.values() for name in own} - {*_OWN[args.engine]}):
        if getattr(args, name) is not None:
            engines = " or ".join(engine for engine in _OWN if name in _OWN[engine])
            raise UserError(
                f"--{name.replace('_', '-')}: expected with {engines} alone, found with "
                f"{args.engine}; leave it out"
            )
    for name in _AMOUNTS:
        amount = getattr(args, name)
        if amount is not None and not 0 <= amount < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')}: expected 0 or more, found {amount}; correct it"
            )
    env = loaded_environment()
    return {"slurm": _slurm, "sky": _sky, "trainjob": _trainjob}[args.engine](args, words, env)


def _slurm(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> int:
    from workloads.cluster import slurm

    job = _slurm_job(args, words, env)
    script = slurm.render(job)
    if args.print:
        print(script, end="")
        return EXIT_DONE
    if shutil.which("sbatch") is None:
        raise UserError(
            "expected sbatch on PATH, found none; do this on a login node of the cluster, or take "
            "the script along: tatara submit slurm … --print"
        )
    path = _written(job.outputs / f"slurm-{job.name}.sh", script)
    more = ["--test-only"] if args.check else []
    code = subprocess.run(slurm.sbatch(path, more), env=_without_secrets()).returncode
    if code:
        raise UserError(f"sbatch refused {path}; its lines above say why")
    return EXIT_DONE


def _slurm_job(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> "SlurmJob":
    from workloads.cluster.slurm import SlurmJob
    from workloads.config.merge import resolve
    from workloads.run import outputs

    if bool(args.runtime) != bool(args.image):
        raise UserError("expected --runtime and --image together, found one of them; add the other")
    if args.time and args.hours:
        raise UserError("expected --time or --hours, found both; leave one out")
    path = profile_path(args.profile, env)
    name, _, values = (args.array or "").partition("=")
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
        # Slurm takes whole minutes.
        limit=args.time or (str(math.ceil(args.hours * 60)) if args.hours else ""),
        save_seconds=300 if args.save_seconds is None else args.save_seconds,
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


def _job(args: argparse.Namespace, words: Sequence[str], env: Mapping[str, str]) -> "ClusterJob":
    from workloads.cluster.job import ClusterJob, profile_of, ranks_of, secrets_of
    from workloads.config.merge import resolve
    from workloads.run import new_id

    path = profile_path(args.profile, env)
    config, provenance = resolve(path, env, words)
    report_ignored(str(path), provenance)
    if not args.gpus:
        print("tatara: no --gpus: each node trains on its processors", file=sys.stderr)
    return ClusterJob(
        name=config.name,
        run_id=args.run_id or new_id(),
        profile=profile_of(config),
        nodes=config.parallel.nodes,
        ranks=ranks_of(config, args.gpus),
        gpus=args.gpus,
        cpus=args.cpus,
        hours=args.hours,
        retries=args.retries,
        image=args.image,
        secrets=secrets_of(env),
    )


def _sky(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> int:
    from workloads.cluster.job import dump
    from workloads.cluster.sky import Rented, task
    from workloads.run import outputs

    job = _job(args, words, env)
    own = {
        "infra": args.infra,
        "accelerator": args.gpu_type,
        "most": args.max_hourly_cost,
        "idle_minutes": 5 if args.bucket and args.idle_minutes is None else args.idle_minutes,
        "bucket": args.bucket,
        "like": args.like,
        "save_seconds": args.save_seconds,
    }
    rented = Rented(**_given(own))
    found = task(job, rented)
    if not args.bucket:
        print(
            f"tatara: the run stays on the machines' disks, which are ended {rented.idle_minutes} "
            "minutes after it: copy it by then, or name a --bucket",
            file=sys.stderr,
        )
    if args.print:
        print(dump([found]), end="")
        return EXIT_DONE
    _check_fields("sky", [("Task", found)])
    path = outputs(env) / f"sky-{job.name}.yaml"
    if args.check:
        return _check_sky(_written(path, dump([found])))
    names = found.get("secrets", {})
    if "TATARA_RENDEZVOUS_SECRET" in names:
        os.environ.setdefault("TATARA_RENDEZVOUS_SECRET", secrets.token_hex(32))
    asked = [word for name in names for word in ("--secret", name)]
    command = ["sky", "launch", "-c", found["name"], *asked, *args.option]
    return _submitted(command, _written(path, dump([found])), job)


def _check_sky(path: Path) -> int:
    """Have SkyPilot read the file in its own environment, where there is one."""
    program = shutil.which("sky")
    if program is None:
        print(f"{path}: its fields are known; SkyPilot is not installed here, and was not asked")
        return EXIT_DONE
    with open(program, "rb") as file:
        python = file.readline().decode(errors="replace").strip().removeprefix("#!")
    code = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"
    done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{path}: SkyPilot refuses it: {reason}")
    print(f"{path}: SkyPilot reads it")
    return EXIT_DONE


def _trainjob(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> int:
    from workloads.cluster.job import dump
    from workloads.cluster.trainjob import ClusterPlace, documents
    from workloads.run import outputs

    job = _job(args, words, env)
    names = ("volume", "secret", "queue", "namespace", "shm")
    found = documents(job, ClusterPlace(**_given({name: getattr(args, name) for name in names})))
    if args.print:
        print(dump(found), end="")
        return EXIT_DONE
    _check_fields("trainer", [(item["kind"], item) for item in found[1:]])
    path = outputs(env) / f"trainjob-{job.name}.yaml"
    if args.check:
        _written(path, dump(found))
        print(
            f"{path}: its fields are known; the cluster's own rules: kubectl apply --dry-run=server"
        )
        return EXIT_DONE
    return _submitted(["kubectl", "apply", *args.option, "-f"], _written(path, dump(found)), job)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check_fields(engine: str, found: Sequence[tuple[str, Any]]) -> None:
    from workloads.cluster.fields import known, wrong_fields

    wrong = [text for kind, value in found for text in wrong_fields(engine, kind, value)]
    if wrong:
        raise UserError(f"not valid for {engine} {known(engine)['version']}: {'; '.join(wrong)}")


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _submitted(command: list[str], path: Path, job: "ClusterJob") -> int:
    program = command[0]
    if shutil.which(program) is None:
        raise UserError(f"expected {program} on PATH, found none; {_INSTALL[program]}")
    if subprocess.run([*command, str(path)]).returncode:
        raise UserError(f"{program} did not take {path}; its lines above say why")
    print(f"run {job.name}/{job.run_id}; to go on with it later: --run-id {job.run_id}")
    return EXIT_DONE
