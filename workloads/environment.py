"""The process environment: `.env`, secrets from files, and names that libraries expect."""

import os
from collections.abc import Mapping
from pathlib import Path

from workloads.errors import UserError

# Each secret may be given as a value or, as Docker does, as a file named by `<NAME>_FILE`.
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "TATARA_SERVE_TOKEN")
SECRET_FOLDER = Path("/run/secrets")
# Names that the users' documents have → the name that the library reads.
ALIASES = {"HUGGINGFACE_API_KEY": "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN"}


def load(base: Mapping[str, str], dotenv: Path = Path(".env")) -> dict[str, str]:
    """The environment with `.env` under it and secrets filled in; what is set already wins.

    Raises UserError for a `.env`, or a secret file that is named, which cannot be read.
    """
    env = {**_dotenv_values(dotenv), **{name: value for name, value in base.items() if value}}
    for old, new in ALIASES.items():
        if env.get(old) and not env.get(new):
            env[new] = env[old]
    for name in SECRETS:
        if not env.get(name):
            secret = _secret_from_file(name, env)
            if secret:
                env[name] = secret
    return env


def _dotenv_values(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path, encoding="utf-8-sig")  # some editors put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a readable file in UTF-8, found: {error}; save it as UTF-8, or mend "
            "its rights"
        ) from None
    return {name: value for name, value in found.items() if value}


def _secret_from_file(name: str, env: Mapping[str, str]) -> str | None:
    named = env.get(f"{name}_FILE")
    path = Path(named) if named else SECRET_FOLDER / name.lower()
    if not named and not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{name}_FILE: expected a readable file, found {path}: {error}") from None


def apply(env: Mapping[str, str]) -> None:
    """Make the merged environment this process's own, for the libraries that read it."""
    os.environ.update(env)


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """A text with every secret value of the environment blotted out."""
    for name in (*SECRETS, *ALIASES):
        if env.get(name):
            text = text.replace(env[name], f"<{name}>")
    return text
