"""Inspect demonstrations, convert them to another format, make some, or preview rows of text."""

import argparse
from collections.abc import Callable, Sequence

from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

ACTIONS: Commands = {
    "inspect": ("workloads.commands.data_inspect", "say what is in a data set, and what is wrong"),
    "convert": ("workloads.commands.data_convert", "write a data set in another format"),
    "preview": ("workloads.commands.data_preview", "show rows of text and what is learnt of them"),
    "generate": (
        "workloads.commands.data_generate",
        "write demonstrations or questions to try",
    ),
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, ACTIONS, "ACTION", _with_environment)


def _with_environment(
    main: Callable[..., int],
) -> Callable[[argparse.Namespace, Sequence[str]], int]:
    """A preview is of a PROFILE, which settings may follow; the others take none."""
    return main if main.__module__ == ACTIONS["preview"][0] else with_environment(main)
