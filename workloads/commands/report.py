"""Write a run's page: curves, scores, settings with their sources, data, environment, events; or
one page of several runs. One HTML file that stands alone; it can be written while a run goes on.
With --csv: the numbers of every logged step as a table for a spreadsheet."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        default=["latest"],
        metavar="RUN",
        help="a run: folder, profile, id or its start, latest (the default); of several, one page "
        "that lays their curves over each other and names the settings that differ",
    )
    parser.add_argument(
        "--csv", action="store_true", help="write the numbers of every logged step as CSV instead"
    )
    parser.add_argument(
        "--output",
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (default RUN/report.html, of several outputs/comparison.html; with "
        "--csv RUN/metrics.csv or outputs/comparison.csv)",
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads.monitor.html import compare, report
    from workloads.monitor.reading import find
    from workloads.monitor.text import csv_file
    from workloads.run import outputs

    no_settings(words)
    root = outputs(loaded_environment())
    runs = list(dict.fromkeys(find.locate(root, wanted) for wanted in args.runs))
    if args.csv:
        usual = runs[0].path / "metrics.csv" if len(runs) == 1 else root / "comparison.csv"
        print(csv_file.write(runs, args.output or usual))
        return EXIT_DONE
    if len(runs) > compare.MOST:
        raise UserError(
            f"expected at most {compare.MOST} runs, found {len(runs)}; more are not told apart by "
            "colour: leave some out"
        )
    usual = runs[0].path / "report.html" if len(runs) == 1 else root / "comparison.html"
    print(report.write(runs, args.output or usual))
    return EXIT_DONE
