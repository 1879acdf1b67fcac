"""Rent a machine by the hour, train on it, bring the run home verified, and end it.

`lambda` rents at Lambda; `ssh` takes a machine that you have. The others look after a lease, or
after a machine that was rented in the provider's console.
"""

from workloads.commands.common import settings_follow
from workloads.commands.parsing import CommandParser, Commands, add_commands

ACTIONS: Commands = {
    "lambda": ("workloads.commands.rent.cloud", "rent at Lambda, train, save, end"),
    "ssh": ("workloads.commands.rent.ssh", "a shell on a machine; with a PROFILE: train on it"),
    "watch": ("workloads.commands.rent.watch", "go on with a lease whose watcher is gone"),
    "list": ("workloads.commands.rent.listing", "leases, machines and what they cost"),
    "status": ("workloads.commands.rent.status", "how a lease or a machine is now"),
    "logs": ("workloads.commands.rent.logs", "what a training over there prints"),
    "backup": ("workloads.commands.rent.backup", "copy runs home now, and verify them"),
    "end": ("workloads.commands.rent.end", "stop, save, verify, and end the machine"),
    "reap": ("workloads.commands.rent.reap", "end machines whose deadline is over, for cron"),
}


def add_arguments(parser: CommandParser) -> None:
    takes_profile = settings_follow(ACTIONS["lambda"][0], ACTIONS["ssh"][0])
    add_commands(parser, ACTIONS, "ACTION", takes_profile)
