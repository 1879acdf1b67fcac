"""What `tatara rent lambda` and `tatara rent ssh` share: arguments, ledger, the lease itself."""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import profile_path, report_ignored
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.rent.lease import Lease
    from workloads.rent.ledger import Ledger
    from workloads.rent.provider import Provider, Request

_AMOUNTS = ("hours", "max_price", "wait_minutes", "save_seconds", "salvage_minutes", "gpus")
_BOUNDED = (*_AMOUNTS, "retries", "tries")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every lease."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="show steps, price and plan, and end")
    how.add_argument(
        "--detach", action="store_true", help="watch in the background; its lines go to the log"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--resume", metavar="RUN", help="go on with this run of outputs/")
    run.add_argument(
        "--retries", type=int, default=3, metavar="N", help="restarts after 75 (default 3)"
    )
    run.add_argument(
        "--save-seconds",
        type=float,
        default=300,
        metavar="S",
        help="kept before the deadline for the last step and its checkpoint (default 300)",
    )
    run.add_argument(
        "--salvage-minutes",
        type=float,
        default=15,
        metavar="N",
        help="after the deadline for the last copy (default 15)",
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--identity", default="", metavar="FILE", help="private key of ssh")
    machine.add_argument(
        "--ssh-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="as ssh -o takes it: Port=2222; may be given again",
    )
    machine.add_argument(
        "--folder", default="tatara", metavar="DIR", help="the checkout over there (default tatara)"
    )
    machine.add_argument(
        "--python",
        default="",
        metavar="PATH",
        help="a Python over there that has the project's packages; without it .venv is made",
    )


def check_amounts(args: argparse.Namespace) -> None:
    """UserError for amounts that are none, and for hours too short to save in."""
    for name in _BOUNDED:
        amount = vars(args).get(name)
        if amount is not None and not 0 <= amount < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')}: expected 0 or more, found {amount}; correct it"
            )
    if args.hours and args.hours * 3600 <= args.save_seconds:
        raise UserError(
            f"--hours: expected more than the {args.save_seconds:g} s of --save-seconds, found "
            f"{args.hours:g} h; rent for longer"
        )


def new_ledger(
    args: argparse.Namespace,
    words: Sequence[str],
    env: dict[str, str],
    request: "Request",
    **machine: Any,
) -> "tuple[Ledger, str]":
    """A ledger that is not written yet, and the profile as it goes along."""
    from workloads.cluster.job import profile_of
    from workloads.config.merge import resolve
    from workloads.rent.ledger import FOLDER, Ledger, lease_name
    from workloads.run import find, new_id, outputs

    path = profile_path(args.profile, env)
    config, provenance = resolve(path, env, words)
    report_ignored(str(path), provenance)
    root = outputs(env).absolute()
    run_id = find(root, config.name, args.resume).id if args.resume else new_id()
    name = lease_name(config.name, run_id)
    parallel = config.parallel
    ledger = Ledger(
        name=name,
        profile=config.name,
        run_id=run_id,
        root=str(root / FOLDER / name),
        copy=str(root / config.name / run_id),
        checkout=str(Path.cwd()),
        request=request,
        identity=args.identity,
        options=list(args.ssh_option),
        folder=args.folder,
        python=args.python,
        retries=args.retries,
        resume=bool(args.resume),
        # The training restarts what hangs by itself; this is for when that hangs.
        hang_seconds=parallel.hang_timeout * (parallel.restarts + 2),
        save_seconds=args.save_seconds,
        salvage_seconds=args.salvage_minutes * 60,
        **machine,
    )
    return ledger, profile_of(config)


def begin(
    args: argparse.Namespace,
    ledger: "Ledger",
    profile: str,
    env: dict[str, str],
    lines: list[str],
    provider: "Provider | None" = None,
) -> int:
    """Write the ledger and carry the lease to its end; raises UserError for an open lease."""
    from workloads.rent.clock import Clock
    from workloads.rent.ledger import load
    from workloads.rent.opening import lease_of
    from workloads.rent.opening import profile_path as path_of
    from workloads.rent.remote import need_programs
    from workloads.signals import Stop

    need_programs()
    if (ledger.path / "lease.json").is_file() and load(ledger.path).is_open:
        raise UserError(
            f"{ledger.name}: expected no open lease of this run, found one; go on with it: tatara "
            f"rent watch {ledger.name}, or end it: tatara rent end {ledger.name}"
        )
    stop, clock = Stop(), Clock()
    ledger.begun = clock.time()
    ledger.save()
    path_of(ledger).write_text(profile, encoding="utf-8")
    try:
        lease = lease_of(ledger, env, stop, clock, provider)
    except BaseException:
        _forget(ledger)
        raise
    if left := lease.preparation and lease.preparation.payload.left:
        lines.append(f"{left} files that git does not list stay here (git add sends them along)")
    for line in lines:
        lease.say(line)
    if args.detach:
        return detach(ledger)
    return carry_on(lease)


def _forget(ledger: "Ledger") -> None:
    """Nothing has begun: the folder goes again."""
    for path in ledger.path.iterdir():
        path.unlink()
    ledger.path.rmdir()


def carry_on(lease: "Lease") -> int:
    """What is left of a lease, to its end; Ctrl-C saves and ends, twice leaves at once."""
    from workloads.rent.opening import outlive_the_terminal
    from workloads.signals import handled_by

    outlive_the_terminal()
    with handled_by(lease.stop.on_signal):
        return lease.carry_on()


def detach(ledger: "Ledger") -> int:
    """Hand a lease to a process of its own, which outlives this one."""
    with (ledger.path / "watcher.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workloads.cli", "rent", "watch", ledger.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ,
            start_new_session=True,
        )
    print(f"watched by process {process.pid}; its lines: {ledger.path / 'watcher.log'}")
    print(f"how it is: tatara rent status {ledger.name}; end it: tatara rent end {ledger.name}")
    return EXIT_DONE
