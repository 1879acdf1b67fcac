"""The secret that the nodes of a job prove to each other.

TATARA_RENDEZVOUS_SECRET where it is set; else a file in `outputs/` that its owner alone can read
and the first node makes, so that nodes which share `outputs/` need no setting.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from workloads.errors import UserError

VARIABLE = "TATARA_RENDEZVOUS_SECRET"
FILE = ".rendezvous-secret"
_LEAST = 16  # characters; ours have 64


def rendezvous_secret(env: Mapping[str, str], outputs: Path) -> bytes:
    """The secret as bytes; raises UserError where it is too short, or others can read its file."""
    given = env.get(VARIABLE)
    if given is None:
        return _from_file(outputs / FILE)
    if len(given) < _LEAST:
        raise UserError(
            f"{VARIABLE}: expected at least {_LEAST} characters, found {len(given)}; make one with "
            "`openssl rand -hex 32` and put the same line into .env on every host"
        )
    return given.encode()


def _from_file(path: Path) -> bytes:
    if not path.exists():
        _make(path)
    try:
        with path.open(encoding="ascii") as file:
            facts = os.fstat(file.fileno())
            text = file.read().strip()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a readable file, found: {error}; {_INSTEAD}") from None
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or len(text) < _LEAST:
        raise UserError(
            f"{path}: expected the secret of your runs, a file that you own and that nobody else "
            f"can read, found owner {facts.st_uid}, mode {facts.st_mode & 0o777:o}, "
            f"{len(text)} characters; {_INSTEAD}"
        )
    return text.encode()


_INSTEAD = f"delete it, or set {VARIABLE} in .env on every host"


def _make(path: Path) -> None:
    """Create the file by a link: of several nodes that do so at once, one wins for all."""
    beside = path.with_name(f"{FILE}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); {_INSTEAD}") from None
    finally:
        beside.unlink(missing_ok=True)
