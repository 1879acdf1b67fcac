"""Shared code of demos with several trainings: each stage is a process that can be resumed."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from workloads.errors import EXIT_DONE, EXIT_STOPPED, STOPS, UserError
from workloads.run import Run, find, new_id, outputs
from workloads.signals import handled_by, held_back, interruptible


def run(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """The exit code of a demo; a user's mistake ends with one sentence."""
    try:
        return interruptible(lambda: main(words))
    except UserError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code


def arguments(target: str, description: str | None, words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether to resume the newest demo, and settings for every stage.

    Raises UserError for any other argument.
    """
    parser = argparse.ArgumentParser(
        prog=f"make {target}", description=description, allow_abbrev=False
    )
    parser.add_argument("--resume", action="store_true", help="resume the newest demo")
    args, settings = parser.parse_known_args(words)
    if wrong := [word for word in settings if "=" not in word]:
        raise UserError(f"expected settings as name=value, found {wrong[0]!r}")
    return args.resume, settings


def newest(profile: str) -> Run | None:
    """The newest run of a profile, if there is one."""
    try:
        return find(outputs(os.environ), profile, "latest")
    except UserError:
        return None


def stage(
    profile: str, known: Run | None, settings: Sequence[str], is_done: Callable[[Run], bool]
) -> tuple[int, Run]:
    """Train a profile to its end, or go on with a known run of it; the exit code and the run."""
    if known is not None and is_done(known):
        print(f"done before: {known.path}", flush=True)
        return EXIT_DONE, known
    run = known or Run(outputs(os.environ) / profile / new_id())
    command = [sys.executable, "-m", "workloads.cli", "train", f"profiles/{profile}.yaml"]
    command += [*settings, *(["--resume", run.id] if known else [])]
    # So small a model gains nothing from a second thread, and loses much on a busy machine.
    env = {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "", "RUN_ID": run.id}
    # A stop is passed on to the training, which saves; its exit code then says so. As SIGTERM: of a
    # Ctrl-C the terminal tells it too, and two of those would mean now.
    with (
        held_back(),
        subprocess.Popen(command, env=env) as process,
        handled_by(lambda *_: process.terminate()),
    ):
        return process.wait(), run


def ended(target: str, code: int, saved: bool) -> int:
    """The exit code of a demo that ends with this stage; prints how to resume after a stop.

    saved: whether an earlier stage has exported, so that something is kept.
    """
    if saved and code in STOPS:
        code = EXIT_STOPPED
    if code == EXIT_STOPPED:
        print(f"go on with: make {target} ARGS=--resume", flush=True)
    return code
