"""One checkout on a shared engine: its project, its images, its environment for Compose.

Set-up writes project name, image tag and folder into `.env`, and a file of the folder's name below
`.cache`, which compose.yaml asks for: in another checkout a copied `.env` names a file that is not
there, and Compose ends before it builds or recreates anything.
"""

import getpass
import hashlib
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from workloads import env_file
from workloads.environment import CA_NAMES
from workloads.errors import UserError

NOT_SET_UP = "this checkout has not been set up"
_MARK = ".cache/set-up-in"
_SHELL_ENV = ".cache/shell.env"
_NAMES_PROJECT = ("COMPOSE_PROJECT_NAME", "TATARA_TAG")
# Given to set-up once, they apply to later builds and starts.
_KEPT = (
    "BASE_IMAGE",
    "TORCH_VERSION",
    "TORCH_INDEX_URL",
    "FLASH_ATTN",
    "VLLM",
    "TATARA_RUNTIME",
    "TATARA_OUTPUTS",
    "TATARA_CACHE",
    "TATARA_DATA",
)
# Settings for a build's downloads; `docker history` does not show them.
_OF_A_BUILD = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
)
_LOWER_CASE = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CA = "/run/secrets/ca"
# apt has no variable for authorities, and would read them as a user who may not. /dev/shm is in no
# layer.
_APT_SETTINGS = f'Acquire::https::CAInfo \\"{_CA}\\"; APT::Sandbox::User \\"root\\";'
_FOR_APT = f'APT_CONFIG=/dev/shm/apt.conf; echo "{_APT_SETTINGS}" >/dev/shm/apt.conf'


def root() -> Path:
    """The checkout's folder, links resolved, in which scripts and doctor work."""
    return Path.cwd().resolve()


def caller(env: Mapping[str, str]) -> tuple[int, int]:
    """Uid and gid of the caller, also behind sudo: files that a run writes belong to them."""
    uid, gid = env.get("SUDO_UID") or os.getuid(), env.get("SUDO_GID") or os.getgid()
    return int(uid), int(gid)


def project(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Name of the compose project and tag of the images, by user and folder."""
    uid, _ = caller(env)
    name = env.get("SUDO_USER") or _user_name()
    user = re.sub(r"[^a-z0-9]", "", name.lower()) or f"u{uid}"
    tag = f"{user}-{hashlib.sha256(f'{uid}:{folder}'.encode()).hexdigest()[:8]}"
    return {"COMPOSE_PROJECT_NAME": f"tatara-{tag}", "TATARA_TAG": tag}


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in the user database
        return ""


def mark(folder: Path, of: Path | None = None) -> Path:
    """The file that says a folder was set up; `of`: the folder that `.env` names."""
    return Path(f"{folder}/{_MARK}{of or folder}")


def belongs(folder: Path) -> str:
    """Why `.env` is not the one that set-up wrote for this checkout; empty if it is."""
    named = env_file.read(folder / ".env").get("TATARA_CHECKOUT", "")
    if not named:
        return NOT_SET_UP
    if named != str(folder):
        return f".env is that of {named}, copied here"
    return "" if mark(folder).is_file() else NOT_SET_UP


def set_up(folder: Path, env: Mapping[str, str]) -> None:
    """Write `.env`, readable by the caller alone, and the mark; both may be written again."""
    path = folder / ".env"
    found = env_file.read(path)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text((folder / ".env.example").read_text(encoding="utf-8"), encoding="utf-8")
    uid, gid = caller(env)
    values = {"UID": str(uid), "GID": str(gid), "TATARA_DOTENV": ".env"}
    is_copied = found.get("TATARA_CHECKOUT", str(folder)) != str(folder)
    for name, value in project(folder, env).items():
        if is_copied or not found.get(name):
            values[name] = value
    values["TATARA_CHECKOUT"] = str(folder)
    values.update({name: env[name] for name in _KEPT if env.get(name)})
    env_file.keep(path, values)
    own(path, env)
    write_build_settings(folder, env)


def own(path: Path, env: Mapping[str, str]) -> None:
    """Give a file that root wrote behind sudo to the caller."""
    if os.getuid() == 0:
        os.chown(path, *caller(env))


def _write(path: Path, text: str, env: Mapping[str, str]) -> None:
    """Write a file that only the caller can read."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        own(folder, env)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(text, encoding="utf-8")
        own(partial, env)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_build_settings(folder: Path, env: Mapping[str, str]) -> None:
    """Write settings for a build's downloads into the mark: proxies, indices, certificates."""
    settings = download_settings(folder, env)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    names = " ".join(f"{name}={_CA}" for name in (*CA_NAMES, "PIP_CERT"))
    lines.append(f"if [ -s {_CA} ]; then export {names} {_FOR_APT}; fi")
    _write(mark(folder), "\n".join(lines) + "\n", env)


def download_settings(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Proxies and package indices of the shell and `.env`, proxies under both of their names."""
    given = with_dotenv(folder, env)
    for lower in _LOWER_CASE:  # apt knows these alone, other programs the upper-case ones
        for name, other in ((lower, lower.upper()), (lower.upper(), lower)):
            if value := given.get(name) or given.get(other):
                given[name] = value
    return {name: given[name] for name in _OF_A_BUILD if given.get(name)}


def with_dotenv(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set, with `.env` under them."""
    given = {name: value for name, value in env.items() if value}
    return {**env_file.read(folder / ".env"), **given}


def shell_settings(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Variables of the caller's shell for the job: documented names, those of `.env`, TATARA__…"""
    example = (folder / ".env.example").read_text(encoding="utf-8")
    names = {*re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE), *_LOWER_CASE}
    names |= set(env_file.read(folder / ".env"))
    names |= {name for name in env if name.startswith("TATARA__")}
    return {name: env[name] for name in sorted(names) if env.get(name)}


def compose_environment(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of `docker compose` in this checkout; writes the files that it names."""
    settings = shell_settings(folder, env)
    lines = [env_file.line(name, value) + "\n" for name, value in settings.items()]
    _write(folder / _SHELL_ENV, "".join(lines), env)
    if not belongs(folder):
        write_build_settings(folder, env)
    uid, gid = caller(env)
    made = {**env, "UID": str(uid), "GID": str(gid), "TATARA_SHELL_ENV": _SHELL_ENV}
    made["GIT_COMMIT"] = commit(folder)
    made["TATARA_HOSTNAME"] = socket.gethostname()
    if (folder / ".env").is_file():
        made["TATARA_DOTENV"] = ".env"
    if bundle := authorities(with_dotenv(folder, env)):
        made["TATARA_CA_FILE"] = bundle
    return made


def authorities(env: Mapping[str, str]) -> str:
    """The file of CA certificates that this host's programs use, empty for their default.

    Raises UserError for a file that is named and cannot be read.
    """
    names = [name for name in ("TATARA_CA_FILE", *CA_NAMES) if env.get(name)]
    if names and not os.access(env[names[0]], os.R_OK):
        raise UserError(
            f"{names[0]}: expected a file of certificates that you can read, found "
            f"{env[names[0]]}; correct the path (a relative one counts from the checkout), or "
            "unset it"
        )
    return os.path.abspath(env[names[0]]) if names else ""


def commit(folder: Path) -> str:
    """The commit of the code, for the image's label."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=30)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
