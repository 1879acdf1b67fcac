"""`python3 -m workloads.host COMMAND …` for scripts; each answer is text for a shell.

settings                    what scripts take from .env, as assignments
runtime                     docker or local, a tab, and why
services PROFILE            the services that train it here, node 0's first
running [PROFILE]           containers of this checkout that train: id, a tab, service
check-engine                nothing, exit code 0; else what a Docker engine lacks
check-folders FOLDER…       nothing, exit code 0; else which you cannot write, and what to do
is-set-up                   nothing, exit code 0; else why not
set-up                      write .env and what Compose asks for
compose ARGUMENT…           become `docker compose` in this checkout
down                        remove this checkout's containers, networks and dangling images
clock                       the time now, as outputs tell it, for the three below
first-step PROFILE SINCE    the run with a first step newer than a time
resumable PROFILE SINCE     the run since a time that has a whole checkpoint
outcome PROFILE SINCE       what stops since a time have left; PROFILE may be empty
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workloads import env_file, environment
from workloads.errors import TataraError, UserError, file_problem
from workloads.host import checkout, runs, selinux
from workloads.host.engine import choose_runtime, engine, gets_images
from workloads.host.folders import check_writable
from workloads.host.ports import is_free, is_port
from workloads.host.programs import run_program
from workloads.host.requirements import requirements
from workloads.host.services import running, training

_SETTINGS = ("BASE_IMAGE", "TATARA_OUTPUTS", "TATARA_CACHE", "RECIPE", "NODE_RANK")
_BASE = "python:3.11-slim-bookworm"


def _settings() -> None:
    env = _environment()
    defaults = {"TATARA_OUTPUTS": "outputs", "TATARA_CACHE": ".cache", "BASE_IMAGE": _BASE}
    for name in _SETTINGS:
        print(f"{name}={shlex.quote(env.get(name) or defaults.get(name, ''))}")


def _environment() -> dict[str, str]:
    return environment.load(os.environ)


def _runtime() -> None:
    env = _environment()
    runtime, why = choose_runtime(env, engine(env))
    base = env.get("BASE_IMAGE") or _BASE
    if runtime == "docker" and not env.get("TATARA_RUNTIME") and not gets_images(base, env):
        runtime, why = "local", f"the Docker engine cannot get the base image {base}"
    print(f"{runtime}\t{why}")


def _services(profile: str) -> None:
    print(" ".join(service.name for service in training(profile, _environment())))


def _running(profile: str = "") -> None:
    for container in running(checkout.root(), profile, os.environ):
        print(f"{container.id}\t{container.service}")


def _check_engine() -> None:
    for finding in requirements(engine(_environment())):
        if finding.is_bad:
            raise UserError(
                f"{finding.name}: expected {finding.needed}, found {finding.found}; {finding.fix}"
            )


def _check_folders(*folders: str) -> None:
    check_writable([Path(folder) for folder in folders], *checkout.caller(os.environ))


def _is_set_up() -> None:
    if why := checkout.belongs(checkout.root()):
        raise UserError(
            f"{why}; run scripts/setup_environment.sh, which makes it a project of its own"
        )


def _set_up() -> None:
    checkout.set_up(checkout.root(), os.environ)


def _compose(*arguments: str) -> None:
    if checkout.belongs(checkout.root()) not in ("", checkout.NOT_SET_UP):
        _is_set_up()  # with all of a checkout copied, Compose itself would find nothing wrong
    env = checkout.compose_environment(checkout.root(), os.environ)
    port = _environment().get("BOARD_PORT") or "6006"
    if not is_port(port):
        raise UserError(f"BOARD_PORT: expected a port from 0 to 65535, found {port!r}; correct it")
    if "board" in arguments and "up" in arguments and not is_free(int(port), "127.0.0.1"):
        raise UserError(
            f"expected port {port} of 127.0.0.1 for TensorBoard, found it taken; open "
            f"http://127.0.0.1:{port} if that is TensorBoard already, or set "
            f"BOARD_PORT={int(port) + 1}"
        )
    _label_for_containers()
    os.execvpe("docker", ["docker", "compose", *arguments], env)


def _label_for_containers() -> None:
    env = _environment()
    if selinux.is_enforced(engine(env)):
        selinux.label(selinux.own(env), env)


def _down() -> None:
    """Remove containers, networks and images of this checkout.

    Raises UserError while one trains.
    """
    root = checkout.root()
    _is_set_up()
    if left := running(root, "", os.environ):
        names = ", ".join(container.service for container in left)
        raise UserError(f"expected no training, found {names}; run scripts/stop_training.sh first")
    label = f"label=tatara.checkout={root}"
    run_program(["docker", "image", "prune", "--force", "--filter", label], os.environ, 120)
    _compose("--profile", "*", "down", "--remove-orphans")


def _clock() -> None:
    print(f"{runs.clock(_outputs()):.6f}")


def _first_step(profile: str, since: str) -> None:
    moment = _moment(since)
    run = runs.newest(_outputs(), profile, moment)
    if run is not None and runs.has_first_step(run, moment):
        print(run)


def _resumable(profile: str, since: str) -> None:
    run = runs.newest(_outputs(), profile, _moment(since))
    if run is not None and runs.newest_checkpoint(run):
        print(run.name)


def _outcome(profile: str, since: str) -> None:
    print("\n".join(runs.how_they_stopped(_outputs(), profile, _moment(since))))


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"expected a time in seconds, as `clock` prints it, found {text!r}"
        ) from None


def _outputs() -> Path:
    return Path(_environment().get("TATARA_OUTPUTS") or "outputs")


COMMANDS: dict[str, Callable[..., None]] = {
    "settings": _settings,
    "runtime": _runtime,
    "services": _services,
    "running": _running,
    "check-engine": _check_engine,
    "check-folders": _check_folders,
    "is-set-up": _is_set_up,
    "set-up": _set_up,
    "compose": _compose,
    "down": _down,
    "clock": _clock,
    "first-step": _first_step,
    "resumable": _resumable,
    "outcome": _outcome,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns 2 after a message where that is not possible."""
    try:
        # A line of .env that readers take differently is refused before anything is done.
        env_file.read()
        COMMANDS[arguments[0]](*arguments[1:])
    except TataraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        problem = file_problem(error)
        if problem is None:
            raise
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0
