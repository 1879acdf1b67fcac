"""A real sshd on loopback for tests, with keys of its own; skipped where none is installed."""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from workloads.launch.network import free_ports

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""


@dataclass
class SshServer:
    """port: on 127.0.0.1; identity: the private key that it lets in."""

    folder: Path
    port: int
    identity: Path
    user: str

    def new_host_key(self) -> None:
        """Be another machine from the next connection on."""
        _key(self.folder / "host_key")


def sshd() -> str | None:
    """The program, which is found by its whole path alone."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Serve until the block ends; what was started over it goes on, as on a machine."""
    program = sshd()
    if program is None or shutil.which("rsync") is None:
        pytest.skip("no sshd and rsync: apt-get install openssh-server rsync")
    folder.mkdir(parents=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it where it gives up its rights
    server = SshServer(folder, free_ports(), folder / "id_ed25519", getpass.getuser())
    for path in (server.identity, folder / "host_key"):
        _key(path)
    shutil.copy(f"{server.identity}.pub", folder / "authorized_keys")
    config = folder / "sshd_config"
    config.write_text(_CONFIG.format(port=server.port, folder=folder))
    process = subprocess.Popen(
        [program, "-D", "-e", "-f", str(config)], stderr=(folder / "log").open("w")
    )
    try:
        end = time.monotonic() + 20
        while not (folder / "pid").exists():
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.02)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _key(path: Path) -> None:
    path.unlink(missing_ok=True)
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
