"""Print rows of PROFILE as a model sees them: text, tokens, which are given and which learnt; and
statistics of all rows. The first rows, the longest, the shortest, and one of every format."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment, resolved
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.config.sections import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="rows to print (3)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write the lengths of all rows there, as a PNG"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    env = loaded_environment()
    config, _ = resolved(args.profile, env, words)
    preview(config, env, args.show, args.output)
    return EXIT_DONE


def preview(config: "Profile", env: dict[str, str], count: int, output: Path | None) -> None:
    """Print `count` rows of a language model's profile and the statistics of all.

    output: a folder for the chart of row lengths. Raises UserError for another workload.
    """
    if config.workload != "llm":
        raise UserError(
            f"expected a profile of workload llm to preview rows of, found {config.workload}; "
            "for demonstrations of robots see tatara data inspect"
        )
    from rich.console import Console

    from workloads.llm.check import prepared
    from workloads.llm.config import LlmConfig
    from workloads.llm.data.preview import CHART, draw, measure, show

    assert isinstance(config, LlmConfig)
    data, tokenizer, _ = prepared(config, env)
    show(data, tokenizer, count, Console())
    if output is not None:
        draw(*measure(data), output / CHART)
        print(output / CHART)
