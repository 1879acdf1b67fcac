"""Time and waiting in one place, so that tests can let hours pass."""

import time
from collections.abc import Callable

_SLICE = 0.2  # seconds until a wait notices a request to stop


class Clock:
    """The time of this machine."""

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float, stop: Callable[[], int] = lambda: 0) -> None:
        """Wait so long, or until a request to stop."""
        end = time.monotonic() + seconds
        while not stop() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
