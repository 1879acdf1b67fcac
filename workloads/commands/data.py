"""Inspect demonstrations, convert them to another format, or make some."""

from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

ACTIONS: Commands = {
    "inspect": ("workloads.commands.data_inspect", "say what is in a data set, and what is wrong"),
    "convert": ("workloads.commands.data_convert", "write a data set in another format"),
    "generate": ("workloads.commands.data_generate", "write demonstrations of a simulated task"),
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, ACTIONS, "ACTION", with_environment)
