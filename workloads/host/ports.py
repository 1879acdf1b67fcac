"""Whether a server may listen on a port of this machine."""

import errno
import socket


def is_free(port: int, address: str = "") -> bool:
    """Whether nobody listens there and this user may."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True
