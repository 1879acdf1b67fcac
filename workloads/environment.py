"""The process environment: `.env`, secrets from files, and names that libraries expect."""

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from workloads import env_file
from workloads.errors import UserError

# Each secret may be given as a value or, as Docker does, as a file named by `<NAME>_FILE`.
SECRETS = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "TATARA_SERVE_TOKEN",
    "TATARA_RENDEZVOUS_SECRET",
    "LAMBDA_API_KEY",
)
SECRET_FOLDER = Path("/run/secrets")
# Names that users' documents use → the name that the library reads.
ALIASES = {"HUGGINGFACE_API_KEY": "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN"}

# Files that compose.yaml mounts: `.env`, then the caller's shell variables, which win.
_HANDED_IN = ("dotenv", "shell")
# An empty value of these is a choice (no GPU), which `.env` must not undo.
_EMPTY_IS_A_CHOICE = ("CUDA_VISIBLE_DEVICES",)
# Files of the host: their content is mounted as a secret; the path is not valid in a container.
CA_NAMES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PATHS_OF_THE_HOST = (*CA_NAMES, "SSL_CERT_DIR", *(f"{name}_FILE" for name in SECRETS))
# It rents machines on an account: no training needs it.
_NOT_FOR_JOBS = ("LAMBDA_API_KEY",)

# A name is that of a secret by one of its parts, or by its end.
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:PASS|PWD|PAT|AUTH|AUTHORIZATION|BEARER|JWT|SAS|DSN|CREDS?|CREDENTIALS?"
    r"|COOKIES?|KEYS?|TOKEN|(?:API|AUTH|ACCESS|BOT)_TOKENS|SECRETS?|PASSWORDS?|PASSWD|PASSCODE"
    r"|PASSPHRASE|PRIVATE|SIGNATURE|WEBHOOK)\d*(?:[_.-]|$)"
    r"|(?:PASSWORD|PASSWD|PASSCODE|PASSPHRASE|TOKEN|SECRET|KEY)\d*$"
    r"|CONN(?:ECTION)?_?STR(?:ING)?\d*(?:[_.-]|$)"
)
_NO_SECRETS = ("TATARA__", "COMPOSE_", "PIP_", "GPG_KEY")
_FOLDERS = ("PWD", "OLDPWD")  # of a shell
_SHORTEST = 6  # shorter values occur in ordinary words, too
# Secrets inside values of any name: the password of an address, or its token (https://TOKEN@host),
# and parameters of addresses and connection strings (…?sig=…, …;AccountKey=…).
_IN_VALUES = (
    re.compile(r"://[^/@\s]*?:([^/\s]+)@"),
    re.compile(r"https?://([^/@:\s]{16,})@"),
    re.compile(
        r"(?i)(?:(?:^|[?&;])\s*\w*(?:key|token|secret|sig|signature)|(?:password|passwd|pwd))"
        r"=([^;&\s]+)"
    ),
)


def load(base: Mapping[str, str], dotenv: Path = Path(".env")) -> dict[str, str]:
    """The environment with `.env` under it and secrets filled in; variables that are set win.

    In a container, `.env` and the variables of the caller's shell are secrets that Compose mounts.
    Raises UserError for a `.env`, or a secret file that is named, which cannot be read.
    """
    files = {**env_file.read(dotenv), **handed_in(SECRET_FOLDER)}
    chosen = set(_EMPTY_IS_A_CHOICE)
    env = {name: value for name, value in files.items() if value}
    env.update({name: value for name, value in base.items() if value or name in chosen})
    for old, new in ALIASES.items():
        if env.get(old) and not env.get(new):
            env[new] = env[old]
    for name in SECRETS:
        # Blanks around it are of a file or an editor.
        secret = env.pop(name, "").strip() or _secret_from_file(name, env)
        if not secret.isprintable():
            # Libraries show such a value in their errors: no header may have it.
            raise UserError(
                f"{name}: expected one line without control characters, found others; copy it again"
            )
        if secret:
            env[name] = secret
    return env


def handed_in(folder: Path) -> dict[str, str]:
    """Settings that a container was given as files; empty outside of one.

    Left out are paths of the host, variables that no job needs, and secrets that also came as files
    of their own, which win.
    """
    found: dict[str, str] = {}
    for name in _HANDED_IN:
        if is_readable(folder / name):
            found.update(env_file.read(folder / name))
    files = {name: ALIASES.get(name, name).lower() for name in (*SECRETS, *ALIASES)}
    own = {name for name, file in files.items() if is_readable(folder / file)}
    left_out = {*_PATHS_OF_THE_HOST, *_NOT_FOR_JOBS, *own}
    return {name: value for name, value in found.items() if name not in left_out}


OWN_UID = "run scripts/setup_environment.sh, which writes your UID and GID into .env"


def is_readable(path: Path) -> bool:
    """Whether a secret was given; without one, Compose mounts /dev/null.

    Raises UserError for a file that this user may not read.
    """
    if not path.is_file():
        return False
    if not os.access(path, os.R_OK):
        raise UserError(
            f"{path}: not readable by uid {os.getuid()}; {OWN_UID}, so that the container runs as "
            "you, and keep the file yours"
        )
    return True


def _secret_from_file(name: str, env: Mapping[str, str]) -> str:
    named = env.get(f"{name}_FILE")
    path = Path(named) if named else SECRET_FOLDER / name.lower()
    if not named and not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}_FILE: expected a readable file, found {path}: {error}") from None


def apply(env: Mapping[str, str]) -> None:
    """Put the merged environment into this process, for the libraries that read it."""
    os.environ.update(env)


@cache
def is_secret(name: str) -> bool:
    """Whether a variable's name marks its value as a secret: a token, a key, a password.

    Names of secret files are none, nor are settings such as TATARA__…__MAX_NEW_TOKENS.
    """
    if name in SECRETS or name in ALIASES:
        return True
    if name.startswith(_NO_SECRETS) or name.upper().endswith(("_FILE", "_PATH", "_DIR")):
        return False
    return name not in _FOLDERS and bool(_SECRET_NAME.search(name.upper()))


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """A text without the secrets of the environment and the passwords in addresses."""
    found = [(secret, name) for name, value in env.items() for secret in _secrets_in(name, value)]
    # The longest first: one may be the beginning of another.
    for secret, name in sorted(found, key=lambda pair: -len(pair[0])):
        text = text.replace(secret, f"<{name}>")
    return text


def _secrets_in(name: str, value: str) -> list[str]:
    """The whole value of a secret and what it has inside, in the forms in which texts have them."""
    if name in SECRETS or name in ALIASES:
        return [*_forms(value)] if value else []
    found = [value] if is_secret(name) else []
    for part in (match[1] for pattern in _IN_VALUES for match in pattern.finditer(value)):
        found += [part, unquote(part)]
    return [form for secret in found if len(secret) >= _SHORTEST for form in _forms(secret)]


def _forms(secret: str) -> set[str]:
    """As it is, as a part of an address, and as Python and JSON write it."""
    return {secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]}


def cache_folder(env: Mapping[str, str]) -> Path:
    """The folder of caches: TATARA_CACHE, or `.cache` here."""
    return Path(env.get("TATARA_CACHE") or ".cache")
