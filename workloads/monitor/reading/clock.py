"""Age of what another process, perhaps on another machine, has written.

Wall clocks jump and differ between machines. A `monotonic` time counts if it is of this machine's
current boot; otherwise only changes observed here do, by this process's own clock.
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
    """The current time by both clocks, this machine's name, and its boot time."""

    monotonic: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    booted: float = field(default_factory=_boot_time)  # wall time

    def age(self, monotonic: float | None, written: float, host: str) -> float | None:
        """Seconds since a `monotonic` time in a file that was written at `written` (mtime).

        None for a time of another machine, or of an earlier boot. A container has its own host name
        but this machine's clocks: then the ages by both clocks agree.
        """
        # Slightly in the future: written, or rounded up, after `now` was taken.
        if monotonic is None or monotonic > self.monotonic + _AGREE:
            return None
        if written < self.booted - _AGREE:
            return None
        age = max(0.0, self.monotonic - monotonic)
        by_wall = self.wall - written
        return age if host == self.host or abs(age - by_wall) < _AGREE else None


@dataclass
class LastChange:
    """Time of the last observed change of a value; its first observation is none."""

    changed: bool = False
    _value: object = None
    _at: float | None = None

    def age(self, value: object, now: float) -> float:
        """Seconds since the last change, or since the first observation; 0 where it changes now."""
        if self._at is None:
            self._value, self._at = value, now
        elif value != self._value:
            self._value, self._at, self.changed = value, now, True
        return now - self._at
