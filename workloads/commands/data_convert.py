"""Write the dataset DIR in another format to the folder OUT, which appears when it is complete.
Steps with a damaged image are left out and reported; past the budget nothing is written."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from workloads.commands.common import Ticker
from workloads.commands.data_open import add_opening, open_named
from workloads.errors import EXIT_DONE, UserError

FORMATS = ("lerobot", "crane-x7")
VIDEO = ("h264", "av1")
_LARGEST = 4096
_MOST = 20  # lines of damage shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_opening(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, empty or new")
    parser.add_argument(
        "--to", choices=FORMATS, default=FORMATS[0], help="LeRobot v3.0, or CRANE-X7 TFRecords"
    )
    parser.add_argument(
        "--video", choices=VIDEO, help="write images as mp4, which is smaller and loses a little"
    )
    parser.add_argument("--fps", type=float, help="steps a second, where the data do not give them")
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="default: the cameras that all episodes have"
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="make all images squares of this size"
    )
    parser.add_argument(
        "--max-damaged", type=int, metavar="N", help="records to skip, default 10 or 0.1 %%"
    )


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from workloads.data.robot.crane_x7.converter import to_crane_x7
    from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME
    from workloads.data.robot.lerobot.layout import camera_name
    from workloads.data.robot.lerobot.writer import to_lerobot_v3
    from workloads.data.robot.review import missing_instruction
    from workloads.data.tfrecord import summed_up

    source, out = args.folder.resolve(), args.out.resolve()
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise UserError(f"expected OUT beside the dataset, found {args.out}; choose another")
    if args.fps is not None and not 0 < args.fps < math.inf:
        raise UserError(f"--fps: expected steps a second above 0, found {args.fps:g}")
    if args.size is not None and not 8 <= args.size <= _LARGEST:
        raise UserError(f"--size: expected 8 to {_LARGEST} pixels, found {args.size}")
    if args.video is not None and args.to != "lerobot":
        raise UserError(f"--video: expected --to lerobot, found --to {args.to}; leave one out")
    dataset = open_named(args, env, args.max_damaged)
    problem = missing_instruction(dataset)
    if problem is not None:
        raise UserError(
            problem.replace("data.instruction_key", "--instruction-key").replace(
                "data.instruction", "--instruction"
            )
        )
    cameras = None if args.cameras is None else list(dict.fromkeys(args.cameras))
    options = {"fps": args.fps, "cameras": cameras, "size": args.size}
    ticker = Ticker("episodes written")
    if args.to == "lerobot":
        done = to_lerobot_v3(dataset, args.out, **options, video=args.video, progress=ticker)
    else:
        done = to_crane_x7(dataset, args.out, **options, progress=ticker)
    for note in dataset.notes:
        print(f"note: {note}")
    left_out = summed_up((*dataset.damage, *done.skipped))
    for line in left_out[:_MOST]:
        print(f"left out: {line}")
    if len(left_out) > _MOST:
        more = f"and {len(left_out) - _MOST} more lines"
        print(f"{more}; tatara data inspect {args.folder} --json lists all")
    for camera in dataset.cameras:
        if args.cameras and camera not in args.cameras:
            print(f"not written: camera {camera}")
        elif args.to == "lerobot" and camera_name(camera) != camera:
            print(f"camera {camera}: written as {camera_name(camera)}, as LeRobot needs it")
    if args.to == "crane-x7" and dataset.name != DATASET_NAME and dataset.action_names:
        print(f"not written: names of dimensions ({', '.join(dataset.action_names)})")
    for text in dataset.lost_cameras.values():
        print(f"not written: {text}")
    for feature, what in dataset.unused.items():
        print(f"not written: {feature} ({what})")
    name = "LeRobot v3.0" if args.to == "lerobot" else "CRANE-X7"
    print(f"{done.path}: {name}, {done.episodes} episodes, {done.frames:,} steps")
    if done.kept:
        print(f"{done.kept:,} images kept byte for byte")
    return EXIT_DONE
