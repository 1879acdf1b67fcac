"""Arguments that name a dataset, shared by all commands that open one."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.environment import cache_folder
from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.data.robot import Dataset


def add_opening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="CRANE-X7, LeRobot, RLDS, CALVIN, HDF5 or ROS 2 bag demonstrations; a LeRobot name on "
        "the hub",
    )
    parser.add_argument(
        "--color-order", choices=("rgb", "bgr"), help="of images where no meta.json says it"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="for episodes without one")
    parser.add_argument(
        "--instruction-key", metavar="KEY", help="feature that holds the instructions"
    )
    parser.add_argument(
        "--instruction-map", nargs="+", default=(), metavar="FOUND=TEXT",
        help="texts, or numbers, to the instruction that counts",
    )  # fmt: skip
    parser.add_argument(
        "--keep-placeholder", action="store_true", help="keep last steps that only stand still"
    )
    parser.add_argument("--split", metavar="NAME", help="split to read (RLDS)")
    for what in ("state", "action"):
        parser.add_argument(
            f"--{what}-keys", nargs="+", default=(), metavar="KEY",
            help=f"vectors that make the {what} (not for CRANE-X7); topics of a ROS 2 bag",
        )  # fmt: skip
    parser.add_argument("--rate", type=float, help="steps a second to sample a ROS 2 bag at")
    parser.add_argument("--revision", metavar="NAME", help="of a dataset on the hub")


def open_named(
    args: argparse.Namespace, env: Mapping[str, str], damage_budget: float | None
) -> "Dataset":
    """Open the dataset that `add_opening`'s arguments name; indices are kept where a training does.

    damage_budget: see `Options`. Raises UserError for an argument out of range, and as
    `open_dataset` does.
    """
    from workloads.data.robot import Options, open_dataset

    pairs = [pair.partition("=") for pair in args.instruction_map]
    for found, equals, text in pairs:
        if not equals or not text.strip():
            raise UserError(f"--instruction-map: expected FOUND=TEXT, found {found!r}")
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise UserError(f"--rate: expected steps a second above 0, found {args.rate:g}")
    options = Options(
        drop_last_placeholder=not args.keep_placeholder,
        color_order=args.color_order,
        cache_dir=cache_folder(env) / "robot",
        instruction=args.instruction,
        instruction_key=args.instruction_key,
        instruction_map={found: text for found, _, text in pairs},
        damage_budget=damage_budget,
        split=args.split,
        state_keys=tuple(args.state_keys),
        action_keys=tuple(args.action_keys),
        rate=args.rate,
        revision=args.revision,
    )
    return open_dataset(args.folder, options)
