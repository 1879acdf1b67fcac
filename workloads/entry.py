"""Entry point of the images: `tatara VERB …` for a verb, any other command as it is.

Before either it puts right what Compose cannot: secrets that came as files go into this process's
environment (never into the container's, which `docker inspect` shows), a variable that was set to
nothing is unset where nothing has a meaning of its own, and HOME exists.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workloads.cli import COMMANDS, main
from workloads.environment import ALIASES, SECRET_FOLDER, SECRETS
from workloads.errors import UserError
from workloads.signals import interruptible

# Libraries take an empty value of these for a choice; an empty CUDA_VISIBLE_DEVICES is one.
_UNSET_IF_EMPTY = ("NCCL_", "GLOO_", "HF_", "WANDB_")


def prepared(env: Mapping[str, str], folder: Path = SECRET_FOLDER) -> dict[str, str]:
    """The environment of the job; UserError where a secret was given but did not arrive."""
    unset = {name for name, value in env.items() if not value and name.startswith(_UNSET_IF_EMPTY)}
    found = {name: value for name, value in env.items() if name not in unset}
    names = (*SECRETS, *ALIASES)
    from dotenv import dotenv_values  # here, so that a stop signal finds its handler soon

    dotenv = folder / "dotenv"
    values = dotenv_values(dotenv) if _is_readable(dotenv) else {}
    missing = [name for name in names if not found.get(name) and not _has_file(name, folder)]
    found.update({name: value for name in missing if (value := values.get(name))})
    for name in found.pop("TATARA_SECRETS_OUTSIDE", "").split():
        real = ALIASES.get(name, name)
        if not found.get(name) and not _has_file(name, folder):
            raise UserError(
                f"{name} is set outside of the container, and values are not handed in, since "
                f"`docker inspect` would show them; put the line TATARA_DOTENV=.env into .env, or "
                f"name a file with {real}_FILE"
            )
    return found


def _has_file(name: str, folder: Path) -> bool:
    """Whether a secret came as a file of its own, which goes before that of all."""
    return _is_readable(folder / ALIASES.get(name, name).lower())


def _is_readable(path: Path) -> bool:
    """Whether a secret is there; where none was given, Compose mounts /dev/null."""
    if not path.is_file():
        return False
    if not os.access(path, os.R_OK):
        raise UserError(
            f"{path}: not readable by uid {os.getuid()}; {_OWN_UID}, so that the container runs as "
            "you, and keep the file yours"
        )
    return True


_OWN_UID = "run scripts/setup_environment.sh, which writes your UID and GID into .env"


def make_home(env: Mapping[str, str]) -> None:
    """Create HOME on the mounted cache; UserError names the owner where that is not possible."""
    home = Path(env.get("HOME") or "/tmp")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cache = home.parent
        owner = f"uid {cache.stat().st_uid}" if cache.exists() else "nobody"
        raise UserError(
            f"{cache}: expected a folder that uid {os.getuid()} can write, found one of {owner} "
            f"({error.strerror}); {_OWN_UID}"
        ) from None


def start(words: list[str]) -> int:
    """Run a verb, or become another command."""
    return interruptible(lambda: _start(words))


def _start(words: list[str]) -> int:
    try:
        env = prepared(os.environ)
        make_home(env)
    except UserError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    for name in set(os.environ) - set(env):
        del os.environ[name]
    os.environ.update(env)
    if words[0] in COMMANDS or words[0] in ("-h", "--help", "help"):
        return main(words)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(
            f"tatara: {words[0]!r} is neither a command ({', '.join(COMMANDS)}) nor a program here "
            f"({error.strerror})",
            file=sys.stderr,
        )
    return UserError.exit_code


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:] or ["--help"]))
