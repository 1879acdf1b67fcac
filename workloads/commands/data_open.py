"""How a data set is named on the command line, the same for whatever is done with it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.data.robot import Dataset


def add_opening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="CRANE-X7, LeRobot or RLDS demonstrations"
    )
    parser.add_argument(
        "--color-order", choices=("rgb", "bgr"), help="of pictures where no meta.json says it"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="for episodes without one")
    parser.add_argument(
        "--keep-placeholder", action="store_true", help="keep last steps that only stand still"
    )
    parser.add_argument("--split", metavar="NAME", help="split to read (RLDS)")
    for what in ("state", "action"):
        parser.add_argument(
            f"--{what}-keys", nargs="+", default=(), metavar="KEY",
            help=f"vectors that make the {what} (RLDS, LeRobot)",
        )  # fmt: skip


def open_named(
    args: argparse.Namespace, env: Mapping[str, str], damage_budget: float | None
) -> "Dataset":
    """Open what `add_opening`'s arguments name; indices go where a training keeps them."""
    from workloads.data.robot import open_dataset

    return open_dataset(
        args.folder,
        not args.keep_placeholder,
        color_order=args.color_order,
        cache_dir=Path(env.get("TATARA_CACHE") or ".cache") / "robot",
        instruction=args.instruction,
        damage_budget=damage_budget,
        split=args.split,
        state_keys=args.state_keys,
        action_keys=args.action_keys,
    )
