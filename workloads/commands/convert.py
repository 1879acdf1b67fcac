"""Turn a checkpoint of another tool into plain safetensors."""

from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

SOURCES: Commands = {
    "zero": ("workloads.commands.convert_zero", "DeepSpeed ZeRO-2 or ZeRO-3 shards to float32"),
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, SOURCES, "SOURCE", with_environment)
