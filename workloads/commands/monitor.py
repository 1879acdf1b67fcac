"""Watch a run, or all of them. It only reads the run's files: training never notices, and a view
can be left and opened again at any time. Without RUN: the newest run that is going on."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment, no_settings, print_json
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run's id, profile/id, folder, or latest"
    )
    parser.add_argument("--all", action="store_true", help="begin with the list of all runs")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print one picture as text and end")
    how.add_argument("--json", action="store_true", help="print one picture as JSON and end")
    how.add_argument("--web", action="store_true", help="serve the view to a browser here")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of --web on 127.0.0.1 (default 8737; 0: any)"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Ends with 2 where there is no run to watch."""
    from workloads.run import outputs

    no_settings(words)
    if args.port is not None and not args.web:
        raise UserError("--port is the port of --web; add --web, or leave out --port")
    if args.all and args.run:
        raise UserError(f"expected --all or one run, found both; leave out --all or {args.run}")
    root = outputs(loaded_environment())
    run = _chosen(root, args)
    # Whatever trains on this machine goes first.
    os.nice(10)
    if args.web:
        from workloads.monitor.html.web import serve

        return serve(root, run, args.port)
    if args.json or args.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        return _one_picture(root, run, args.json)
    from workloads.monitor.text.live import Monitor
    from workloads.processes import own_command

    # Without the mouse the terminal itself can select and copy, paths above all.
    watched = Monitor(root, run).run(mouse=False)
    if watched:
        print(f"{watched} goes on; watch it again with: {own_command()} monitor {watched}")
    return EXIT_DONE


def _chosen(root: Path, args: argparse.Namespace) -> "Run | None":
    """The run to begin with, None for the list of all."""
    from workloads.monitor.reading import find

    if args.all:
        find.some_runs(root)
        return None
    return find.locate(root, args.run) if args.run else find.newest_active(root)


def _one_picture(root: Path, run: "Run | None", as_json: bool) -> int:
    from workloads.monitor.text import print_once

    if as_json:
        print_json(print_once.as_dict(root, run))
    else:
        print_once.show(root, run)
    return EXIT_DONE
