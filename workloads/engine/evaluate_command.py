"""Shared parts of `tatara eval TASK`: a run or a model, a precision, an output, progress."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.run import Run, outputs
from workloads.run.models import exported_model

PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Target:
    """The model to evaluate: its folder or hub name, and its run, if any.

    precision: of weights and computation. folder: for results without --output.
    output: the user's choice, None by default.
    """

    name: str
    run: Run | None
    precision: str
    folder: Path
    output: Path | None


def add_target(
    parser: argparse.ArgumentParser, output: str, precision: bool = True
) -> argparse._MutuallyExclusiveGroup:
    """Add RUN|MODEL, --precision and --output; `output` describes what is written there.

    Returns the group of alternatives to RUN|MODEL.
    """
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "target",
        nargs="?",
        metavar="RUN|MODEL",
        help="a run (folder, profile, id or its start, latest), whose final/ is meant, or a "
        "model's folder or hub name",
    )
    what.add_argument("--run", metavar="RUN", help="the same, a run in any case")
    what.add_argument("--model", metavar="MODEL", help="the same, a model in any case")
    if precision:
        parser.add_argument(
            "--precision", choices=PRECISIONS, help="default: the run's, or bf16 for a model"
        )
    parser.add_argument("--output", "--out", dest="output", type=Path, metavar="PATH", help=output)
    return what


def target_of(args: argparse.Namespace, env: Mapping[str, str], workload: str) -> Target:
    """The target that the arguments name; UserError where there is none of that name."""
    root = outputs(dict(env))
    run: Run | None = None
    if args.model:
        name = args.model
    else:
        name, run = exported_model(args.run or args.target, root, workload)
    precision = getattr(args, "precision", None)
    if precision is None:
        precision = run.config().train.precision if run else "bf16"
    folder = root / "eval" / name.strip("/.").replace("/", "--")
    return Target(name, run, precision, run.evaluation / "eval" if run else folder, args.output)


class Progress:
    """Progress of an evaluation: one line on a terminal, in a log a line for each tenth."""

    def __init__(self, unit: str) -> None:
        self._unit, self._reported = unit, 0

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if sys.stderr.isatty():
            print(f"\r\x1b[K{done} of {total} {self._unit}", end="", file=sys.stderr, flush=True)
        elif tenth > self._reported:
            self._reported = tenth
            say(f"{done} of {total} {self._unit}")

    def clear(self) -> None:
        """Leave an empty line for what is printed next."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def say(text: Any) -> None:
    """Print a line on stderr, apart from the results on standard output."""
    print(text, file=sys.stderr, flush=True)
