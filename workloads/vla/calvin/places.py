"""Where CALVIN's simulator runs: options of the command line, the checkout's image, the clone."""

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from workloads.errors import UserError
from workloads.host import checkout
from workloads.host.engine import engine
from workloads.host.programs import run_program
from workloads.vla.calvin import simulator
from workloads.vla.calvin.client import COMMIT, SimulatorPlace

URL = "https://github.com/mees/calvin_env"
_INSIDE = "/opt/calvin_env"  # where the image looks for the clone
_DOWNLOAD, _BUILD = 600.0, 3600.0  # seconds


def add_simulator(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where simulators run."""
    group = parser.add_argument_group(
        "simulator", "by default a container of this checkout's image, which is built first"
    )
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--env-python", type=Path, metavar="PYTHON", help="a Python with calvin_env's packages"
    )
    where.add_argument(
        "--env-image", metavar="IMAGE", help="another image with calvin_env's packages"
    )
    where.add_argument("--env", metavar="HOST:PORT", help="where simulators listen")
    group.add_argument(
        "--calvin", type=Path, metavar="FOLDER",
        help="clone of calvin_env (default: that of the Python or the image; for this checkout's "
        "image TATARA_CALVIN, or .cache/calvin_env, downloaded where it is not there)",
    )  # fmt: skip
    group.add_argument("--egl", action="store_true", help="draw with the GPU, as the data was")
    group.add_argument("--processes", type=int, default=1, help="simulators side by side (1)")


def place_of(args: argparse.Namespace, env: Mapping[str, str]) -> SimulatorPlace:
    """Where the arguments say that simulators run.

    Raises UserError where there is none, and for options that those which listen do not honour.
    """
    if args.processes < 1:
        raise UserError(f"--processes: expected at least 1, found {args.processes}")
    if args.env is not None:
        if args.calvin or args.egl:
            raise UserError(
                "expected neither --calvin nor --egl beside --env, found one of them; simulators "
                "that listen have chosen clone and renderer when they were started"
            )
        return SimulatorPlace(address=_host_and_port(args.env))
    clone = None if args.calvin is None else _clone_in(args.calvin)
    flags = ("--egl",) if args.egl else ()
    if args.env_python is not None:
        if shutil.which(args.env_python) is None:
            raise UserError(f"--env-python: expected a Python, found none at {args.env_python}")
        where = () if clone is None else ("--calvin", str(clone))
        return SimulatorPlace(
            (str(args.env_python), os.path.abspath(simulator.__file__), *where, *flags)
        )
    if args.env_image is not None:
        return SimulatorPlace((*container(clone, args.egl), args.env_image, *flags))
    _check_checkout(env)
    clone = clone or downloaded(env)
    return SimulatorPlace((*container(clone, args.egl), _built_image(env), *flags))


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--env: expected HOST:PORT, found {text!r}")
    return host, int(port)


def _is_clone(folder: Path) -> bool:
    return (folder / "conf/config_data_collection.yaml").is_file()


def _clone_in(folder: Path) -> Path:
    """The clone of calvin_env that a folder is, or has, as CALVIN's own repository does."""
    found = [path for path in (folder, folder / "calvin_env") if _is_clone(path)]
    if not found:
        raise UserError(
            f"--calvin: expected a clone of calvin_env, found none at {folder}; git clone {URL}"
        )
    return found[0].resolve()


def container(clone: Path | None, egl: bool) -> tuple[str, ...]:
    """`docker run` up to the image: no network, no capabilities, the clone read only."""
    uid, gid = checkout.caller(os.environ)
    # The caller's uid, who may read the clone; root's never goes into a container.
    user = ("--user", f"{uid}:{gid}") if uid else ()
    mount = ("-v", f"{clone}:{_INSIDE}:ro") if clone else ()
    gpu = ("--gpus", "all") if egl else ()
    secure = ("--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    return ("docker", "run", "--rm", "--init", "-i", *secure, *user, *mount, *gpu)


def _check_checkout(env: Mapping[str, str]) -> None:
    found = engine(env)
    why = found if isinstance(found, str) else found.unsupported
    if not why and not Path("compose.yaml").is_file():
        why = "no compose.yaml in this folder"
    if why:
        raise UserError(
            f"expected a Docker engine and a checkout for CALVIN's simulator, found: {why}; give "
            "--env-python PYTHON, an environment that docs/policies.md shows how to make"
        )
    if why := checkout.belongs(checkout.root()):
        raise UserError(f"{why}: its images have no name yet; run scripts/setup_environment.sh")


def downloaded(env: Mapping[str, str]) -> Path:
    """The clone of calvin_env that containers mount, at the pinned commit where it is not there.

    Raises UserError where it is not there and cannot be downloaded.
    """
    cache = Path(env.get("TATARA_CACHE") or ".cache")
    folder = Path(env.get("TATARA_CALVIN") or cache / "calvin_env")
    if _is_clone(folder):
        return folder.resolve()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    git = ("git", "-C", str(partial))
    for command in (
        ("git", "init", "--quiet", str(partial)),
        (*git, "fetch", "--quiet", "--depth", "1", URL, COMMIT),
        (*git, "checkout", "--quiet", "FETCH_HEAD"),
    ):
        answer = run_program(command, env, _DOWNLOAD)
        if not answer.is_good:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"expected calvin_env in {folder}, found none, and its download failed "
                f"({answer.problem}); copy a clone of {URL} there, or name one with --calvin"
            )
    try:
        partial.replace(folder)
    except OSError as error:
        raise UserError(
            f"expected calvin_env or nothing at {folder}, found something else ({error.strerror}); "
            "move it away, or name a clone with --calvin"
        ) from None
    return folder.resolve()


def _built_image(env: Mapping[str, str]) -> str:
    """The simulator's image of this checkout; one that is older than the code is built first."""
    root = checkout.root()
    command = ["docker", "compose", "--progress", "quiet", "--profile", "calvin", "build", "calvin"]
    done = run_program(command, checkout.compose_environment(root, os.environ), _BUILD)
    if not done.is_good:
        raise UserError(
            f"expected the image of CALVIN's simulator to be built, found: {done.problem}; "
            "`make build PROFILE=calvin` shows all of it"
        )
    return f"tatara/calvin:{env.get('TATARA_TAG') or 'local'}"
