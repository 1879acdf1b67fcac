"""How old something is that another process, perhaps on another machine, has written.

Wall clocks jump and differ between machines. A `monotonic` time counts where it is this machine's
since it was started; otherwise only changes that were seen here do, by this process's own clock.
"""

import socket
import time
from dataclasses import dataclass, field

_AGREE = 2.0  # seconds between two ages of one thing, by either clock, if both clocks are ours
_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _boot_time() -> float:
    return time.time() - time.clock_gettime(_UPTIME)


@dataclass(frozen=True)
class Now:
    """This moment by both clocks, this machine's name, and when it was started."""

    monotonic: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    booted: float = field(default_factory=_boot_time)  # wall time

    def age(self, monotonic: float | None, written: float, host: str) -> float | None:
        """Seconds since a `monotonic` time in a file that was written at `written` (mtime).

        None where that time is another machine's, or this one's before it was started again. A
        container's host name is its own while its clocks are this machine's: then the ages by both
        clocks agree.
        """
        # A little later than now: written, or rounded up, since this moment was taken.
        if monotonic is None or monotonic > self.monotonic + _AGREE:
            return None
        if written < self.booted - _AGREE:
            return None
        age = max(0.0, self.monotonic - monotonic)
        by_wall = self.wall - written
        return age if host == self.host or abs(age - by_wall) < _AGREE else None


@dataclass
class LastChange:
    """When a value was last seen to change; the first sight of it is no change."""

    changed: bool = False
    _value: object = None
    _at: float | None = None

    def age(self, value: object, now: float) -> float:
        """Seconds since the last change, or since the first sight; 0 where it changes now."""
        if self._at is None:
            self._value, self._at = value, now
        elif value != self._value:
            self._value, self._at, self.changed = value, now, True
        return now - self._at
