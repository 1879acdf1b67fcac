"""Entry point of the images: `tatara VERB …` for a verb, any other command as it is.

Before either it does what Compose cannot: settings and secrets from files go into this process's
environment (never into the container's, which `docker inspect` shows), empty variables are unset
unless empty has a meaning of its own, and HOME is created.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from workloads.cli import COMMANDS, main
from workloads.environment import (
    ALIASES,
    CA_NAMES,
    OWN_UID,
    SECRET_FOLDER,
    handed_in,
    is_readable,
)
from workloads.errors import UserError
from workloads.signals import interruptible

# Libraries take an empty value of these for a choice; only for CUDA_VISIBLE_DEVICES it is one.
_UNSET_IF_EMPTY = ("NCCL_", "GLOO_", "HF_", "WANDB_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def prepared(env: Mapping[str, str], folder: Path = SECRET_FOLDER) -> dict[str, str]:
    """The environment of the job; UserError where a secret was given but did not arrive."""
    unset = {name for name, value in env.items() if not value and name.startswith(_UNSET_IF_EMPTY)}
    found = {name: value for name, value in env.items() if name not in unset}
    given = {name: value for name, value in handed_in(folder).items() if value}
    found.update({name: value for name, value in given.items() if not _is_set(name, found)})
    for name in found.pop("TATARA_SECRETS_OUTSIDE", "").split():
        real = ALIASES.get(name, name)
        if not found.get(name) and not is_readable(folder / real.lower()):
            raise UserError(
                f"{name} is set outside of the container, and values are not handed in, since "
                f"`docker inspect` would show them; put it into .env, or name a file with "
                f"{real}_FILE"
            )
    return found | _certificates(folder) | _direct(found)


def _is_set(name: str, found: Mapping[str, str]) -> bool:
    return bool(found.get(name)) or (name == "CUDA_VISIBLE_DEVICES" and name in found)


def _certificates(folder: Path) -> dict[str, str]:
    """The caller's CA certificates, under the names that libraries read."""
    bundle = folder / "ca"
    return dict.fromkeys(CA_NAMES, str(bundle)) if is_readable(bundle) else {}


def _direct(env: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY for the job's own hosts, which no proxy reaches."""
    if not any(env.get(name) for name in _PROXIES):
        return {}
    listed = env.get("NO_PROXY") or env.get("no_proxy") or ""
    own = ["localhost", "127.0.0.1", env.get("MASTER_ADDR", "")]
    own.append(urlsplit(env.get("TATARA_VLLM_URL", "")).hostname or "")
    hosts = ",".join(dict.fromkeys(filter(None, [*listed.split(","), *own])))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


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
            f"({error.strerror}); {OWN_UID}"
        ) from None


def start(words: list[str]) -> int:
    """Run a verb, or replace this process by another command."""
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
