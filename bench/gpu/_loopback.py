"""127.0.0.1 has to answer: ranks and servers of one machine meet there.

A network namespace of its own (`unshare -rn`), a usual way to run without a network, begins with
its loopback interface down, and whatever waits for a rank there waits for minutes.
"""

import contextlib
import fcntl
import socket
import struct

_GET_FLAGS, _SET_FLAGS, _IS_UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_NAME, _REQUEST = b"lo", "16sh"


def ensure_loopback() -> bool:
    """Whether 127.0.0.1 answers; an interface that is down is brought up where that is allowed."""
    if not _answers():
        with contextlib.suppress(OSError):
            _bring_up()
    return _answers()


def _answers() -> bool:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError:
        return False
    return True


def _bring_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        found = fcntl.ioctl(handle, _GET_FLAGS, struct.pack(_REQUEST, _NAME, 0).ljust(40, b"\0"))
        _, flags = struct.unpack_from(_REQUEST, found)
        wanted = struct.pack(_REQUEST, _NAME, flags | _IS_UP).ljust(40, b"\0")
        fcntl.ioctl(handle, _SET_FLAGS, wanted)
