"""Prepares a rented machine until a training runs on it; a broken machine is given back.

Each step prints a sentence. Until the training is started nothing on the machine is worth keeping.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workloads.environment import without_secrets
from workloads.errors import TataraError, UserError
from workloads.monitor.numbers import byte_text
from workloads.rent import cuda_step, job
from workloads.rent.ledger import Ledger
from workloads.rent.payload import Payload
from workloads.rent.remote import Remote, RemoteAnswer

_PUSH_SECONDS, _SET_UP_SECONDS, _LOOK_SECONDS = 3600.0, 3600.0, 900.0
_SHOWN = 12  # lines shown of an error


class BrokenMachine(TataraError):
    """This machine cannot train; another one may."""


@dataclass(frozen=True)
class Preparation:
    """What a training needs on the machine. secrets: values by name, sent by stdin alone."""

    payload: Payload
    profile: str
    secrets: Mapping[str, str]
    retries: int = 3
    resume: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.secrets)


def check_gpus(remote: Remote, ledger: Ledger) -> str:
    """Test CUDA on every GPU, before anything is sent or installed."""
    if not ledger.gpus:
        return "no GPU was requested"
    source = Path(cuda_step.__file__).read_text(encoding="utf-8")
    answer = remote.python(source, str(ledger.gpus), seconds=120)
    if answer.code:
        raise BrokenMachine(f"its GPUs do not compute: {answer.reason}")
    return f"CUDA computes on {ledger.gpus} GPU{'s' if ledger.gpus > 1 else ''}"


def send(remote: Remote, ledger: Ledger, preparation: Preparation) -> str:
    """Send the checkout, data, profile and job, then secrets into memory."""
    payload = preparation.payload
    remote.push(payload.root, payload.files, ledger.folder, _PUSH_SECONDS)
    if payload.data:
        remote.push(payload.root, payload.data, ledger.folder, _PUSH_SECONDS)
    copy = Path(ledger.copy)
    if preparation.resume:
        there = f"{ledger.outputs_there}/{ledger.profile}"
        _demand(remote.run(f"mkdir -p {shlex.quote(there)}"), "a folder for the run")
        remote.push(copy.parent, [copy.name], there, _PUSH_SECONDS)
    texts = {
        f"{ledger.folder}/{job.profile(ledger)}": preparation.profile,
        f"{ledger.job_folder}/runner": job.runner(ledger, preparation.retries, preparation.resume),
    }
    for path, text in texts.items():
        script = f"mkdir -p {shlex.quote(ledger.job_folder)} && cat >{shlex.quote(path)}"
        answer = remote.run(script, stdin=text)
        _demand(answer, path)
    for name, value in preparation.secrets.items():
        _demand(remote.run(job.keep_secret(ledger, name), stdin=value), name)
    files = len(payload.files) + len(payload.data)
    secrets = f"; into its memory: {', '.join(preparation.names)}" if preparation.secrets else ""
    return f"sent {files} files and folders, {byte_text(payload.size)}{secrets}"


def set_up(remote: Remote, ledger: Ledger, preparation: Preparation) -> str:
    """Set up the project's environment on the machine, unless the lease names an existing one."""
    if ledger.python:
        return f"environment: {ledger.python}"
    script = job.settings(ledger, preparation.names) + "scripts/local_setup.sh"
    _demand(remote.run(script, _SET_UP_SECONDS), "set-up")
    return "environment: made from the lock"


def examine(remote: Remote, ledger: Ledger, preparation: Preparation) -> str:
    """Test torch on a GPU, then run the doctor. Raises BrokenMachine or UserError."""
    before = job.settings(ledger, preparation.names)
    if ledger.gpus:
        script = f"{before}{job.python(ledger)} -m workloads.doctor.trial compute"
        answer = remote.run(script, _LOOK_SECONDS)
        device = _last_json(answer).get("device", "CPU")
        if answer.code or device == "CPU":
            raise BrokenMachine(
                f"torch does not compute on its GPU: {answer.reason if answer.code else device}"
            )
    profile = shlex.quote(job.profile(ledger))
    script = f"{before}{job.python(ledger)} -m workloads.cli doctor {profile} --brief"
    answer = remote.run(script, _LOOK_SECONDS)
    output = without_secrets(answer.out + answer.err, preparation.secrets).strip()
    if answer.code:
        lines = "\n  ".join(output.splitlines()[-_SHOWN:])
        raise UserError(f"the doctor found what stops {ledger.profile} over there:\n  {lines}")
    warnings = "".join(f"\n  {line}" for line in output.splitlines())
    return f"doctor: it can train{warnings}"


def start(remote: Remote, ledger: Ledger, preparation: Preparation) -> None:
    _demand(remote.run(job.start(ledger, preparation.names)), "the start")


def _last_json(answer: RemoteAnswer) -> dict[str, str]:
    for line in reversed(answer.out.splitlines()):
        if line.startswith("{"):
            found: dict[str, str] = json.loads(line)
            return found
    return {}


def _demand(answer: RemoteAnswer, what: str) -> None:
    if answer.code:
        lines = (answer.err or answer.out).strip().splitlines()[-_SHOWN:]
        text = "\n  ".join(lines) or "no word of why"
        raise TataraError(f"{what}: ended with {answer.code} over there:\n  {text}")
