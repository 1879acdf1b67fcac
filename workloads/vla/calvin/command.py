"""CALVIN's evaluation in its own simulator: five tasks in a row, the published protocol.

The same command resumes where it stopped.
"""

import argparse
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workloads.engine.evaluate_command import Progress, Target, add_target, say, target_of
from workloads.errors import EXIT_DONE, UserError
from workloads.vla.calvin.client import COMMIT
from workloads.vla.calvin.places import add_simulator, place_of
from workloads.vla.calvin.rollout import Pilot

SEQUENCES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = add_target(
        parser,
        "folder of results and videos (default: the run's evaluation/eval/calvin)",
        precision=False,
    )
    what.add_argument(
        "--scripted", action="store_true", help="a script instead of a policy: tests the simulator"
    )
    parser.add_argument(
        "--sequences", type=int, default=SEQUENCES, metavar="N",
        help="the first N of the 1000 (default: %(default)s)",
    )  # fmt: skip
    add_simulator(parser)
    parser.add_argument(
        "--videos",
        type=int,
        default=3,
        metavar="N",
        help="record the first N (default: %(default)s)",
    )
    parser.add_argument(
        "--video", choices=["gif", "mp4"], default="gif", help="format of the recordings (gif)"
    )
    parser.add_argument(
        "--unnorm-key", metavar="NAME", help="dataset whose statistics give the units"
    )
    parser.add_argument("--execute", type=int, metavar="K", help="actions of a chunk at a time")
    parser.add_argument(
        "--ensemble", type=float, nargs="?", const=0.01, metavar="WEIGHT",
        help="average all predictions for the same step, as ACT does",
    )  # fmt: skip


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Evaluate a policy in CALVIN's simulator, and print a table beside the published figures.

    Raises UserError for arguments below their least value.
    """
    for name, least in (("sequences", 1), ("videos", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    new_pilot: Callable[[], Pilot]
    if args.scripted:
        from workloads.run import outputs
        from workloads.vla.calvin.scripted import Script

        name, folder = "script", args.output or outputs(dict(env)) / "eval/calvin-script"
        place = place_of(args, env)
        new_pilot, facts = Script, {"policy": "script"}
    else:
        target = target_of(args, env, "vla")
        name, folder = target.name, args.output or target.folder / "calvin"
        place = place_of(args, env)
        new_pilot, facts = _policy(target, args)
    from workloads.vla.calvin.evaluate import VideoOptions, evaluate
    from workloads.vla.calvin.report import summary, table, write

    progress = Progress("sequences")
    results, known = evaluate(
        args.sequences,
        place,
        new_pilot,
        folder,
        facts,
        args.processes,
        VideoOptions(args.videos, args.video),
        progress,
    )
    progress.clear()
    found = summary(results, known)
    print(table(found, name))
    if known["simulator"]["calvin_env"] != COMMIT:
        print(f"calvin_env: {known['simulator']['calvin_env']}, tried with {COMMIT}")
    print(f"results: {write(found, folder)}")
    return EXIT_DONE


def _policy(target: Target, args: argparse.Namespace) -> tuple[Callable[[], Pilot], dict[str, Any]]:
    """A factory of pilots, and the facts that the policy's answers depend on."""
    from workloads.vla.calvin.rollout import PolicyPilot, check_policy
    from workloads.vla.episodes import Execution
    from workloads.vla.policy import Policy

    execution = Execution(args.execute, args.ensemble)
    policy = Policy.from_pretrained(Path(target.name), report=say)
    key = check_policy(policy, args.unnorm_key)
    facts = {
        "policy": target.name,
        "step": _step(Path(target.name)),
        "unnorm_key": key,
        "execute": execution.steps,
        "ensemble": execution.ensemble,
    }
    return partial(PolicyPilot, policy, key, execution, threading.Lock()), facts


def _step(folder: Path) -> int | None:
    """The step of a run's exported model."""
    from workloads.json_files import read_json

    file = folder / "tatara.json"
    return read_json(file).get("step") if file.is_file() else None
