"""Success rate of a policy that reaches for a cube in the simulator.

reach: the cube that the instruction names, beside the same model untrained, the mean action, a
blank image and a shuffled instruction. recall: the cube that is lit only at first, beside the same
model untrained, another cube lit, none, and a memory that is emptied.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from workloads.engine.evaluate_command import Progress, add_target, say, target_of
from workloads.errors import EXIT_DONE, UserError

SCENES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(
        parser,
        "folder of scores and image (default: the run's evaluation/)",
        precision=False,
    )
    parser.add_argument(
        "--scenes", type=int, default=SCENES, help="number of scenes (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)"
    )


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Evaluate a policy in every scene, print a table and draw some rollouts.

    Raises UserError for arguments below their least value.
    """
    for name, least in (("scenes", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    from workloads.vla.reach.judge import judge, table, write
    from workloads.vla.reach.policies import pair
    from workloads.vla.reach.recall import judge_recall
    from workloads.vla.reach.sheet import draw

    target = target_of(args, env, "vla")
    out = target.output or (target.run.evaluation if target.run else target.folder)
    trained, untrained = pair(Path(target.name), say)
    progress = Progress("steps")
    judging = judge_recall if args.task == "recall" else judge
    verdict = judging(trained, untrained, args.scenes, args.seed, progress)
    progress.clear()
    print(table(verdict))
    print(f"scores: {write(verdict, out)}")
    print(f"image: {draw(verdict, out)}")
    return EXIT_DONE
