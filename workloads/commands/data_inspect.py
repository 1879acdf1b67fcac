"""Describe the dataset DIR: episodes, steps, action ranges against the joint limits,
instructions, damage. Every record and image is read. Ends with 1 where a training would refuse
the data."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import Ticker, print_json
from workloads.commands.data_open import add_opening, open_named
from workloads.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from workloads.data.robot import Dataset

SHEET, CURVES, PAGE = "contact_sheet.png", "action_curves.png", "episodes.html"
_MOST = 20  # instructions and lines of damage shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_opening(parser)
    parser.add_argument("--json", action="store_true", help="print everything found as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"write {SHEET}, {CURVES} and {PAGE}, which plays episodes, there",
    )
    parser.add_argument(
        "--quick", action="store_true", help="do not read the images, only what opening reads"
    )


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from workloads.data.robot.inspect import inspect

    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: expected a folder to write to, found {error}") from None
    dataset = open_named(args, env, math.inf)
    found = inspect(dataset, verify=not args.quick, progress=Ticker("episodes read"))
    found["written"] = [] if args.output is None else _draw(dataset, args.output)
    if args.json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    return EXIT_FAILED if found["refused"] else EXIT_DONE


def _draw(dataset: "Dataset", folder: Path) -> list[str]:
    from workloads.data.robot.drawing import action_curves, contact_sheet
    from workloads.data.robot.player import player_page

    if dataset.cameras:
        contact_sheet(dataset, folder / SHEET)
    if dataset.lengths.any():
        action_curves(dataset, folder / CURVES)
        player_page(dataset, folder / PAGE)
    return [str(folder / name) for name in (SHEET, CURVES, PAGE) if (folder / name).is_file()]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The description as lines of text."""
    spread = found["steps_per_episode"]
    lengths = f" ({spread['min']} to {spread['max']} each)" if spread else ""
    rate = "unknown rate" if found["fps"] is None else f"{found['fps']:g} Hz"
    if found["measured_fps"] and found["fps"] is None:
        rate = f"{found['measured_fps']:g} Hz by its times"
    out = [
        f"{found['path']}: {found['format']}, {found['name']}, {rate}",
        f"  {found['episodes']} episodes, {found['steps']:,} steps{lengths}",
    ]
    if found["empty_episodes"]:
        out.append(f"  {found['empty_episodes']} episodes without a usable step")
    if found["drop_last_placeholder"]:
        out.append("  a last step whose action is its own state is left out")
    out.append(f"  colours stored as {', '.join(found['color_orders']) or 'none'}")
    for camera, facts in found["cameras"].items():
        size = "unreadable" if facts["shape"] is None else "{1} x {0}".format(*facts["shape"])
        others = "".join(", also {1} x {0}".format(*shape) for shape in facts["other_shapes"])
        out.append(f"  camera {camera}: {facts['episodes']} episodes, {size}{others}")
    if not found["cameras"]:
        out.append("  no camera")
    out += ["", *_instructions(found)]
    for what in ("actions", "states"):
        out += ["", *_ranges(what, found[what])]
    out.append("")
    for remark in found["remarks"]:
        out.append(f"note: {remark['text']}")
        out += [f"  -> {remark['fix']}"] if remark["fix"] else []
    out += _damage(found)
    if found["refused"]:
        out.append(f"a training would refuse this: {found['refused']}")
    return out + [f"written: {path}" for path in found["written"]]


def _instructions(found: Mapping[str, Any]) -> list[str]:
    counts = found["instructions"]
    shown = [
        f"  {count:>5} x {repr(text) if len(text.splitlines()) > 1 else text}"
        for text, count in list(counts.items())[:_MOST]
    ]
    more = [f"  and {len(counts) - _MOST} more"] if len(counts) > _MOST else []
    stands_in = found["instruction_origins"].get("default", 0)
    default = []
    if stands_in:
        texts = ", ".join(found["text_features"]) or "none"
        default.append(f"  no text in {stands_in} episodes: a default stands in for it")
        default.append(f"  features with texts: {texts} (--instruction-key takes one)")
    return [f"instructions: {len(counts)}", *shown, *more, *default]


_COLUMNS = ("min", "q01", "q99", "max", "mean", "std")


def _ranges(what: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return [f"{what}: none"]
    width = max(len(row["name"]) for row in rows)
    heads = "".join(f" {name:>8}" for name in _COLUMNS)
    out = [f"{what}: {len(rows)} dimensions, unit {rows[0]['unit']}", f"  {'':<{width}}{heads}"]
    for row in rows:
        line = f"  {row['name']:<{width}}" + "".join(f" {row[name]:8.3f}" for name in _COLUMNS)
        if row.get("outside"):
            low, high = row["limits"]
            line += f"   {row['outside']} outside of {low:g}..{high:g}"
        out.append(line)
    return out


def _damage(found: Mapping[str, Any]) -> list[str]:
    from workloads.data.tfrecord import Damage, summed_up

    read = "every image read" if found["verified"] else "images not read"
    if not found["damage"]:
        return [f"damage: none ({read}), {found['gaps']} gaps"]
    counts = ", ".join(f"{count} {name}" for name, count in found["damage_counts"].items())
    lost = f", {found['lost_steps']:,} steps lost"
    out = [f"damage: {counts} ({read}){lost}, {found['gaps']} gaps"]
    kinds = summed_up(Damage(**item) for item in found["damage"])
    out += [f"  {line}" for line in kinds[:_MOST]]
    if len(kinds[:_MOST]) < len(found["damage"]):
        more = f"and {len(kinds) - _MOST} lines more; " if len(kinds) > _MOST else ""
        out.append(f"  {more}--json lists every record")
    return out
