"""Inspect demonstrations, convert or generate them, or preview rows of text."""

import argparse
from collections.abc import Callable, Sequence

from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

ACTIONS: Commands = {
    "inspect": (
        "workloads.commands.data_inspect",
        "describe a dataset and what is wrong with it",
    ),
    "convert": ("workloads.commands.data_convert", "write a dataset in another format"),
    "preview": ("workloads.commands.data_preview", "show rows of text and which tokens are learnt"),
    "generate": (
        "workloads.commands.data_generate",
        "generate demonstrations or questions to try out",
    ),
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, ACTIONS, "ACTION", _with_environment)


def _with_environment(
    main: Callable[..., int],
) -> Callable[[argparse.Namespace, Sequence[str]], int]:
    """Pass settings on to a preview of a PROFILE; the other commands take none."""
    return main if main.__module__ == ACTIONS["preview"][0] else with_environment(main)
