"""Write a run's page: curves, scores, settings with their sources, data, environment, events. One
HTML file that stands alone; it can be written while the run goes on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        default="latest",
        metavar="RUN",
        help="a run's id, profile/id, folder, or latest (the default)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write it (default RUN/report.html)"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads.monitor.html import report
    from workloads.monitor.reading import find
    from workloads.run import outputs

    no_settings(words)
    run = find.locate(outputs(loaded_environment()), args.run)
    print(report.write(run, args.out))
    return EXIT_DONE
