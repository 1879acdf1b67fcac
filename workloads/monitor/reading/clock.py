"""How old something is that another process, perhaps on another machine, has written.

Wall clocks jump and differ between machines. A `monotonic` time counts where it is this machine's;
otherwise only changes that were seen here do, by this process's own clock.
"""

import socket
import time
from dataclasses import dataclass, field

_AGREE = 2.0  # seconds between two ages of one thing, by either clock, if both clocks are ours


@dataclass(frozen=True)
class Now:
    """This moment by both clocks, and this machine's name."""

    monotonic: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)

    def age(self, monotonic: float | None, written: float, host: str) -> float | None:
        """Seconds since a `monotonic` time in a file that was written at `written` (mtime).

        None where that time is another machine's. A container's host name is its own while its
        clocks are this machine's: then the ages by both clocks agree.
        """
        # A little later than now: written, or rounded up, since this moment was taken.
        if monotonic is None or monotonic > self.monotonic + _AGREE:
            return None
        age = max(0.0, self.monotonic - monotonic)
        by_wall = self.wall - written
        return age if host == self.host or abs(age - by_wall) < _AGREE else None


@dataclass
class Watched:
    """When something was last seen to change."""

    value: object
    at: float
    changed: bool = False  # at least once while it was watched

    def look(self, value: object, now: float) -> float:
        """Seconds since the last change, 0 where there is one now."""
        if value != self.value:
            self.value, self.at, self.changed = value, now, True
        return now - self.at
