"""A machine by ssh and rsync: runs commands, copies files both ways, explains failures.

Secrets go through stdin alone; the programs get no variable of this process that could hold one.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.environment import is_secret
from workloads.errors import TataraError, UserError

_SSH_FAILED = 255
_VANISHED = 24  # rsync: files vanished during the copy, as checkpoints of a training do
_KEY_CHANGED = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key verification failed")
_CONNECT = 15  # seconds for a connection; three times as long for silence


class Unreachable(TataraError):
    """ssh got no answer; the machine may still exist."""


class HostKeyChanged(TataraError):
    """The machine at the address is not the rented one."""


class OutOfTime(TataraError):
    """A command took longer than its time limit."""


@dataclass(frozen=True)
class RemoteAnswer:
    """Result of a command on the machine."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last line of its error output."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


@dataclass(frozen=True)
class Remote:
    """One machine. known_hosts: the lease's file, which accepts only the first key; None: the
    user's own. stop: called twice a second during a command, which is given up when it returns
    true.
    """

    address: str
    user: str
    known_hosts: Path | None = None
    identity: str = ""
    options: tuple[str, ...] = ()
    stop: Callable[[], int] = lambda: 0

    @property
    def target(self) -> str:
        return f"{self.user}@{self.address}" if self.user else self.address

    def ssh(self) -> list[str]:
        """The command without its target."""
        # Of a repeated option ssh takes the first.
        options = [
            *self.options,
            "BatchMode=yes",
            "StrictHostKeyChecking=accept-new",
            *([f"UserKnownHostsFile={self.known_hosts}"] if self.known_hosts else []),
            f"ConnectTimeout={_CONNECT}",
            f"ServerAliveInterval={_CONNECT}",
            "ServerAliveCountMax=3",
        ]
        words = ["ssh", *(word for option in options for word in ("-o", option))]
        return [*words, "-i", self.identity] if self.identity else words

    def run(self, script: str, seconds: float = 60, stdin: str = "") -> RemoteAnswer:
        """Run a script in the machine's shell, with a time limit.

        The script is in the argument list of ssh: it holds no secret. Raises Unreachable,
        HostKeyChanged, OutOfTime.
        """
        return self._finished([*self.ssh(), self.target, script], seconds, stdin)

    def python(self, source: str, *arguments: str, seconds: float = 60) -> RemoteAnswer:
        """Run a Python program without dependencies on the machine."""
        words = shlex.join(["python3", "-", *arguments])
        return self.run(words, seconds, stdin=source)

    def push(self, root: Path, names: Sequence[str], folder: str, seconds: float) -> None:
        """Copy files below root into a folder on the machine; folders with all their files."""
        words = ["rsync", "-rlpts", "--from0", "--files-from=-", f"{root}/"]
        self._rsync([*words, f"{self.target}:{folder}/"], seconds, "\0".join(names))

    def pull(
        self, folder: str, copy: Path, rules: Sequence[str], seconds: float, check: bool = False
    ) -> None:
        """Copy a folder from the machine; check: by digest, where sizes and times are no proof."""
        copy.mkdir(parents=True, exist_ok=True)
        words = ["rsync", "-rlptsc" if check else "-rlpts", "--partial", *rules]
        self._rsync([*words, f"{self.target}:{folder}/", f"{copy}/"], seconds)

    def _rsync(self, words: list[str], seconds: float, stdin: str = "") -> None:
        words[1:1] = ["-e", shlex.join(self.ssh())]
        answer = self._finished(words, seconds, stdin)
        # 10, 12, 30 and 35 are rsync's exit codes of a lost connection.
        if answer.code in (10, 12, 30, 35):
            raise Unreachable(f"{self.target}: the copy was cut short: {answer.reason}")
        if answer.code not in (0, _VANISHED):
            raise TataraError(f"rsync ended with {answer.code}: {answer.reason}")

    def _finished(self, words: Sequence[str], seconds: float, stdin: str) -> RemoteAnswer:
        program = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=harmless(os.environ),
            # Ctrl-C in the terminal is handled by the lease, not by its programs.
            start_new_session=True,
        )
        out, err = self._communicate(program, words[0], seconds, stdin)
        if any(text in err for text in _KEY_CHANGED):
            raise HostKeyChanged(
                f"{self.target}: another machine answers there than the one that was rented (its "
                "host key changed); nothing was sent to it"
            )
        if program.returncode == _SSH_FAILED:
            reason = RemoteAnswer(_SSH_FAILED, "", err).reason
            raise Unreachable(f"{self.target}: ssh does not get through: {reason}")
        return RemoteAnswer(program.returncode, out, err)

    def _communicate(
        self, program: "subprocess.Popen[str]", name: str, seconds: float, stdin: str
    ) -> tuple[str, str]:
        end, given = time.monotonic() + seconds, stdin or None
        while True:
            try:
                return program.communicate(given, timeout=0.5)
            except subprocess.TimeoutExpired:
                given = None  # communicate() has kept the rest of it
            late = time.monotonic() >= end
            if late or self.stop():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
                program.communicate()
                why = f"took longer than {seconds:.0f} s" if late else "given up, as asked"
                raise OutOfTime(f"{self.target}: {name}: {why}")


def harmless(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without secrets; keeps ssh's agent, a socket in spite of its name."""
    return {
        name: value for name, value in env.items() if name == "SSH_AUTH_SOCK" or not is_secret(name)
    }


def need_programs() -> None:
    """Raise UserError where ssh or rsync is missing here."""
    missing = [name for name in ("ssh", "rsync", "git") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"expected ssh, rsync and git on PATH, found no {' and no '.join(missing)}; install "
            f"them (Debian, Ubuntu: sudo apt-get install -y openssh-client rsync git)"
        )
