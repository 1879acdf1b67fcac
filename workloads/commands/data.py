"""Inspect demonstrations, convert or generate them, or preview rows of text."""

from workloads.commands.common import settings_follow
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
    add_commands(parser, ACTIONS, "ACTION", settings_follow(ACTIONS["preview"][0]))
