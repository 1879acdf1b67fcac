"""Turn a training config of another tool into a profile."""

from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

SOURCES: Commands = {
    "robovlms": ("workloads.commands.import_robovlms", "a JSON config of RoboVLMs"),
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, SOURCES, "SOURCE", with_environment)
