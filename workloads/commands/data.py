"""Look at demonstrations, convert them or make some; `tatara data WHAT --help` has more."""

import argparse
import importlib
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import UserError

# what → (module with `add_arguments(parser)` and `main(args, env) -> exit code`, what it does)
TABLE = {
    "inspect": ("workloads.commands.data_inspect", "say what is in a data set, and what is wrong"),
    "convert": ("workloads.commands.data_convert", "write a data set in another format"),
    "generate": ("workloads.commands.data_generate", "write demonstrations of a simulated task"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"tatara data {{{','.join(TABLE)}}} …"
    listed = "; ".join(f"{name}: {text}" for name, (_, text) in TABLE.items())
    parser.add_argument("what", metavar="WHAT", help=listed)
    # All that follows is for WHAT, --help too.
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help=argparse.SUPPRESS)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    if args.what not in TABLE:
        raise UserError(f"expected one of {', '.join(TABLE)} after data, found {args.what!r}")
    env = loaded_environment()
    module = importlib.import_module(TABLE[args.what][0])
    parser = argparse.ArgumentParser(
        prog=f"tatara data {args.what}", description=module.__doc__, allow_abbrev=False
    )
    module.add_arguments(parser)
    options, rest = parser.parse_known_args([*args.rest, *words])
    no_settings(rest)
    code: int = module.main(options, env)
    return code
