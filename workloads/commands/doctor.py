"""Check what this machine can run and what it lacks, for PROFILE if one is named."""

import argparse
from collections.abc import Sequence

from workloads.doctor import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    return command.main(args, words)
