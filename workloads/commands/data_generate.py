"""Write data to DIR to begin with: demonstrations of a simulated task as CRANE-X7 recordings, a
script's demonstrations in CALVIN's simulator as CALVIN's own data, or questions about drawn scenes
in the form of R1-V's files, for `tatara eval superclevr`. The same seed gives the same data; where
they are there already, nothing is done."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from workloads.commands.common import Ticker
from workloads.errors import EXIT_DONE, UserError
from workloads.vla.calvin.places import add_simulator, place_of

_EPISODES = {"reach": 8000, "recall": 8000, "calvin": 60}
_TASKS = (*_EPISODES, "questions")
_LEAST = {"episodes": 1, "count": 1, "seed": 0}
_OF_ONE_TASK = {
    "count": "questions",
    **dict.fromkeys(("env_python", "env_image", "env", "calvin", "egl"), "calvin"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        metavar="TASK",
        choices=list(_TASKS),
        help="reach: the named cube; recall: the cube that is lit in the first frames; calvin: "
        "button, drawer and slider in CALVIN's simulator; questions: how many items an image shows",
    )
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="a folder that is empty or not there"
    )
    parser.add_argument("--episodes", type=int, help="reach, recall; default: 8000, for calvin 60")
    parser.add_argument("--count", type=int, help="questions; default: 200")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_simulator(parser)


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    for name, task in _OF_ONE_TASK.items():
        if getattr(args, name) and args.task != task:
            raise UserError(
                f"--{name.replace('_', '-')}: expected with {task} alone, found with {args.task}; "
                "leave it out"
            )
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: expected at least {least}, found {value}")
    if args.task == "questions":
        if args.episodes is not None:
            raise UserError("--episodes: questions have none; give --count")
        return _questions(args)
    episodes = _EPISODES[args.task] if args.episodes is None else args.episodes
    progress = Ticker("episodes written")
    if args.task == "calvin":
        from workloads.vla.calvin import demonstrations

        place = place_of(args, env)
        made = demonstrations.generate(
            args.folder, episodes, args.seed, place, args.processes, progress
        )
    else:
        from workloads.vla.reach.demonstrations import generate

        made = generate(args.folder, episodes, args.seed, progress, args.task)
    print(f"{args.folder}: {episodes:,} episodes{'' if made else ', there already'}")
    return EXIT_DONE


def _questions(args: argparse.Namespace) -> int:
    from workloads.grpo.data.rows import write_questions

    count = 200 if args.count is None else args.count
    made = write_questions(args.folder, count, args.seed)
    print(f"{args.folder}: {count:,} questions{'' if made else ', there already'}")
    return EXIT_DONE
