"""What the nodes of a job tell each other, and the bounds of their waiting."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from workloads.errors import Stopped


@dataclass(frozen=True)
class Hello:
    """What a node says of itself; `config` is a digest, so that two settings never train as one."""

    node: int
    host: str
    ranks: int
    config: str


@dataclass(frozen=True)
class Meeting:
    """What all nodes know once they have met."""

    run_id: str
    attempt: int
    shared: bool
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How one node's part, or the whole job, ended."""

    code: int
    reason: str
    again: bool = False


@dataclass(frozen=True)
class StopRequest:
    """The wish to stop: the number of the signal, and which other node it came to, if one."""

    number: int
    by: str = ""


@dataclass
class Terms:
    """Bounds of the waiting, and where to look for a stop: a signal's number, 0 without one."""

    node_timeout: float
    peer_timeout: float
    stopping: Callable[[], int]
    tell: Callable[[str], None]

    def pause(self, until: float, seconds: float = 0.1) -> bool:
        """Wait a moment; False once `until` (monotonic seconds) has passed; Stopped on a stop."""
        if number := self.stopping():
            raise Stopped("stopped while waiting for other nodes", 128 + number)
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        return time.monotonic() < until
