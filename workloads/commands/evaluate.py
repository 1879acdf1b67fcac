"""Score a run or a model on a task."""

from workloads.catalogue import WORKLOADS
from workloads.commands.common import with_environment
from workloads.commands.parsing import CommandParser, Commands, add_commands

TASKS: Commands = {
    name: task for workload in WORKLOADS.values() for name, task in workload.tasks.items()
}


def add_arguments(parser: CommandParser) -> None:
    add_commands(parser, TASKS, "TASK", with_environment)
