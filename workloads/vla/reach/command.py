"""Reaching for a named cube in the simulator: how often the exported policy of a run does, beside
the same model untrained, the mean action, a blank image and a shuffled instruction."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from workloads.errors import EXIT_DONE, UserError
from workloads.run import Run, outputs

SCENES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "policy",
        metavar="RUN|MODEL_DIR",
        help="a run's folder, its id, latest, or a model's folder",
    )
    parser.add_argument(
        "--scenes", type=int, default=SCENES, help="how many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which scenes (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="folder of scores and picture (default: the run's evaluation/)"
    )


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Act in every scene, score, print a table and draw some rollouts."""
    for name, least in (("scenes", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    from workloads.vla.policy import exported_folder
    from workloads.vla.reach.judge import judge, table, write
    from workloads.vla.reach.policies import pair
    from workloads.vla.reach.sheet import draw

    folder = Path(exported_folder(args.policy, env))
    out = args.out or _place(folder, env)
    trained, untrained = pair(folder, _tell)
    verdict = judge(trained, untrained, args.scenes, args.seed, _progress)
    _clear()
    print(table(verdict))
    print(f"scores: {write(verdict, out)}")
    print(f"picture: {draw(verdict, out)}")
    return EXIT_DONE


def _place(folder: Path, env: Mapping[str, str]) -> Path:
    """The run's own folder for scores; for a model of no run one below outputs/."""
    run = Run(folder.parent)
    if folder.name == run.final.name and (run.path / "manifest.json").is_file():
        return run.evaluation
    return outputs(dict(env)) / "eval" / str(folder).strip("/.").replace("/", "--")


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{done} of {total} steps", end="", file=sys.stderr, flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
