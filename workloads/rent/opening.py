"""Builds a lease from its ledger and this environment: provider, machine, files to send."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from workloads.cluster.job import secrets_of
from workloads.config.merge import resolve
from workloads.environment import without_secrets
from workloads.errors import UserError
from workloads.rent.clock import Clock
from workloads.rent.lambda_api import LambdaApi
from workloads.rent.lambda_cloud import LambdaCloud
from workloads.rent.lease import Lease
from workloads.rent.ledger import BEGINS, Ledger
from workloads.rent.own_machine import OwnMachine
from workloads.rent.payload import payload
from workloads.rent.preparing import Preparation
from workloads.rent.provider import Provider
from workloads.rent.remote import Remote
from workloads.signals import Stop

KEY = "LAMBDA_API_KEY"
_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")


def cloud(
    env: Mapping[str, str], clock: Clock, identity: str = "", key: str = "", file_system: str = ""
) -> LambdaCloud:
    """Lambda with the key of the environment; raises UserError without one."""
    if not env.get(KEY):
        raise UserError(
            f"expected {KEY}, or {KEY}_FILE, in .env or the environment, found none; make a key in "
            "Lambda's console under API keys"
        )
    api = LambdaApi(env[KEY], env.get("LAMBDA_API_URL", ""), clock)
    return LambdaCloud(api, Path(identity or _identity()), key, file_system)


def _identity() -> Path:
    """The usual private key of this user."""
    folder = Path.home() / ".ssh"
    found = [folder / name for name in _IDENTITIES if (folder / f"{name}.pub").is_file()]
    return found[0] if found else folder / _IDENTITIES[0]


def provider_of(ledger: Ledger, env: Mapping[str, str], clock: Clock) -> Provider:
    if ledger.provider == OwnMachine.name:
        return OwnMachine(ledger.machine or ledger.address)
    return cloud(env, clock, ledger.identity, ledger.key, ledger.file_system)


def remote_of(ledger: Ledger) -> Remote:
    # The user's ssh already knows an own machine.
    own = ledger.provider == OwnMachine.name
    return Remote(
        address=ledger.address,
        user=ledger.user,
        known_hosts=None if own else ledger.path / "known_hosts",
        identity=ledger.identity,
        options=tuple(ledger.options),
    )


def preparation_of(ledger: Ledger, env: Mapping[str, str]) -> Preparation:
    """The files to send, by the profile in the ledger: resolved, in one file."""
    path = profile_path(ledger)
    config, _ = resolve(path, {}, [])
    return Preparation(
        payload=payload(Path(ledger.checkout), config.model_dump(mode="json"), env),
        profile=path.read_text(encoding="utf-8"),
        secrets={name: env[name] for name in secrets_of(env)},
        retries=ledger.retries,
        resume=ledger.resume,
    )


def profile_path(ledger: Ledger) -> Path:
    return ledger.path / f"{ledger.profile}.yaml"


def lease_of(
    ledger: Ledger,
    env: Mapping[str, str],
    stop: Stop,
    clock: Clock,
    provider: Provider | None = None,
) -> Lease:
    """The lease of a ledger, ready to continue."""
    begins = ledger.state in BEGINS and not stop()
    return Lease(
        ledger=ledger,
        provider=provider or provider_of(ledger, env, clock),
        remote=remote_of(ledger),
        preparation=preparation_of(ledger, env) if begins else None,
        say=Voice(ledger.path / "log", env),
        stop=stop,
        clock=clock,
    )


class Voice:
    """Prints each line with its time, also into a log file, without secrets."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        self._log, self._env = log, env

    def __call__(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {without_secrets(text, self._env)}"
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        with contextlib.suppress(OSError):  # the terminal was closed; the lease continues
            print(line, flush=True)


def outlive_the_terminal() -> None:
    """Ignore a closed terminal: otherwise the machine would be billed without a watcher."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def end_watcher(ledger: Ledger) -> int:
    """Tell the process that watches a lease to stop, save and end it; returns its id or 0."""
    process = ledger.watcher()
    if process:
        os.kill(process, signal.SIGTERM)
    return process
