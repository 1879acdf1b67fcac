"""Exclusive right to write a run."""

import fcntl
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Self

from workloads.errors import UserError
from workloads.run.directory import Run

OWNER = ".owner"


@dataclass
class Owner:
    """The right to write a run: one supervisor at a time, within a `with` or until it dies.

    Entering raises UserError that names the owner where another process has the run.
    """

    run: Run
    _file: IO[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.run.make()
        try:
            file = (self.run.path / OWNER).open("a+")
        except OSError as error:
            raise UserError(
                f"{self.run.path}: cannot be written: {error.strerror}; give yourself the right to "
                "write there, or start a new run by leaving out --resume and RUN_ID"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{self.run.path}: this run belongs to {owner}; stop that one first, or start a "
                "new run by leaving out --resume and RUN_ID"
            ) from None
        except OSError as error:
            # Lustre without -o flock, NFS without its lock service, some FUSE file systems.
            print(
                f"tatara: {self.run.path} is on a file system without locks ({error.strerror}): "
                "nothing keeps a second start from writing into this run",
                file=sys.stderr,
                flush=True,
            )
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *problem: object) -> None:
        if self._file is not None:
            self._file.close()
