"""Verify a run or a copy of it: every sealed checkpoint and the exported model, by size and digest.

Exit code 0 where all is whole, 1 where something is damaged, missing or cannot be verified.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from workloads.commands.common import print_json, with_environment
from workloads.errors import EXIT_DONE, EXIT_FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN|COPY",
        help="a run (folder, profile, id or its start, latest), or a folder: of a checkpoint, an "
        "exported model, or a copy of one",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


@with_environment
def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    from workloads.monitor.numbers import byte_text
    from workloads.monitor.reading.find import locate
    from workloads.run import outputs
    from workloads.run.verify import all_whole, verify

    folder = Path(args.run)
    if not folder.is_dir():
        folder = locate(outputs(env), args.run).path
    found = verify(folder)
    whole = all_whole(found)
    if args.json:
        print_json({"path": str(folder), "whole": whole, "found": [asdict(item) for item in found]})
        return EXIT_DONE if whole else EXIT_FAILED
    for item in found:
        size = byte_text(item.size) if item.size else ""
        print(f"{item.state:<8}  {size:>9}  {item.name}")
        for note in item.notes:
            print(f"{'':<21}{note}")
        if item.unsealed:
            print(f"{'':<21}also there, in no seal: {', '.join(item.unsealed)}")
    if not found:
        print("nothing is saved here yet")
    print(f"{folder}: {'whole' if whole else 'not whole'}")
    return EXIT_DONE if whole else EXIT_FAILED
