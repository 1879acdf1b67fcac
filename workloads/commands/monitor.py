"""Watch a run, or all of them. It only reads the run's files: training never notices, and a view
can be left and opened again at any time. Without RUN: the newest run that is going on."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment, no_settings, print_json
from workloads.errors import EXIT_DONE, UserError
from workloads.monitor.numbers import clean

if TYPE_CHECKING:
    from workloads.monitor.notify import Notifier
    from workloads.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run: folder, profile, id or its start, latest"
    )
    parser.add_argument("--all", action="store_true", help="begin with the list of all runs")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print one frame as text and end")
    how.add_argument("--json", action="store_true", help="print one frame as JSON and end")
    how.add_argument("--web", action="store_true", help="serve the view to a browser here")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of --web on 127.0.0.1 (default 8737; 0: any)"
    )
    parser.add_argument(
        "--notify",
        metavar="COMMAND|URL|@FILE",
        help="when RUN, or any run, ends, fails or stalls, start this command with a sentence as "
        "its last argument, or post it as JSON to this webhook; @FILE holds either",
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Watch runs. Raises UserError where there is none, and for options that do not combine."""
    from workloads.run import outputs

    no_settings(words)
    if args.port is not None and not args.web:
        raise UserError("--port is the port of --web; add --web, or leave out --port")
    if args.all and args.run:
        raise UserError(f"expected --all or one run, found both; leave out --all or {args.run}")
    if args.notify and (args.once or args.json):
        raise UserError("--notify goes on watching, --once and --json end; leave out one of them")
    root = outputs(loaded_environment())
    run = _chosen(root, args)
    # Whatever trains on this machine goes first.
    os.nice(10)
    if args.web:
        from workloads.monitor.html.web import serve

        _start_notices(args, root, run, _print_notice)
        return serve(root, run, args.port)
    if args.json or args.once:
        return _one_frame(root, run, args.json)
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        notifier = _start_notices(args, root, run, _print_notice)
        if notifier is None:
            return _one_frame(root, run, as_json=False)
        _print_notice(f"watching {args.run or 'all runs'} of {root}; Ctrl-C ends this only")
        with contextlib.suppress(KeyboardInterrupt):
            notifier.wait()  # until the run that is watched has ended
        return EXIT_DONE
    from workloads.monitor.text.live import Monitor
    from workloads.processes import own_command

    view = Monitor(root, run)
    _start_notices(args, root, run, view.announce)
    # Without the mouse the terminal itself can select and copy, paths above all.
    watched = view.run(mouse=False)
    if watched:
        print(f"{watched} goes on; watch it again with: {own_command('monitor', str(watched))}")
    return EXIT_DONE


def _start_notices(
    args: argparse.Namespace, root: Path, run: "Run | None", report: Callable[[str], None]
) -> "Notifier | None":
    """What --notify asks for: of the run that was named, else of all."""
    if not args.notify:
        return None
    from workloads.monitor.notify import Notifier, target_of

    notifier = Notifier(root, run if args.run else None, target_of(args.notify), report)
    notifier.start()
    return notifier


def _print_notice(text: str) -> None:
    print(f"tatara: {clean(text)}", file=sys.stderr, flush=True)


def _chosen(root: Path, args: argparse.Namespace) -> "Run | None":
    """The run to begin with, None for the list of all."""
    from workloads.monitor.reading import find

    if args.all:
        find.some_runs(root)
        return None
    return find.locate(root, args.run) if args.run else find.newest_active(root)


def _one_frame(root: Path, run: "Run | None", as_json: bool) -> int:
    from workloads.monitor.text import print_once

    if as_json:
        print_json(print_once.as_dict(root, run))
    else:
        print_once.show(root, run)
    return EXIT_DONE
