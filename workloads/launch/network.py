"""Interface to another host, and free ports, without any package."""

import contextlib
import fcntl
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from workloads.errors import UserError

_PORT_WAIT = 10.0  # seconds until a port of a job that has just ended is free

_LEAST_PORT = 10_001
_GIVEN_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")

_SIOCGIFADDR = 0x8915  # the request for an interface's IPv4 address, from linux/sockios.h


def interface_to(address: str) -> str | None:
    """The interface that leads to an address; None for loopback and IPv6.

    On the host with that address it is its own interface, so that all nodes of a job can call this
    alike. A name that resolves to loopback is of no use to other hosts.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # a datagram socket sends nothing when it connects
            own = probe.getsockname()[0]
            if own.startswith("127."):
                return None
            names = [name for _, name in socket.if_nameindex()]
            return next((name for name in names if _address_of(probe, name) == own), None)
    except OSError:
        return None


def _address_of(some: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode())
    try:
        answer = fcntl.ioctl(some.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return None  # an interface without an IPv4 address
    return socket.inet_ntoa(answer[20:24])


def free_ports() -> int:
    """The first of two neighbouring ports that are free on this machine; UserError for none.

    torchrun takes its port seconds after it was chosen, so it is one that the kernel gives to no
    connection meanwhile.
    """
    try:
        end = int(_GIVEN_BY_THE_KERNEL.read_text().split()[0]) - 1
    except OSError:
        end = 32_767  # Linux's own default
    if end < _LEAST_PORT + 100:  # the kernel gives nearly all of them
        end = 65_535
    for _ in range(64):
        port = random.SystemRandom().randrange(_LEAST_PORT, end)
        with contextlib.suppress(OSError):
            for number in (port, port + 1):
                socket.create_server(("", number)).close()
            return port
    raise UserError("expected two free ports next to each other on this machine, found none")


def listener(
    address: str, port: int, pause: Callable[[float], bool], patience: float = _PORT_WAIT
) -> socket.socket:
    """A socket that listens for the other nodes; raises UserError where the port stays taken.

    Loopback stays on loopback; any other address means the private network of the nodes. `pause`
    waits a moment, and returns False once the given monotonic time has passed.
    """
    host = "127.0.0.1" if address in ("127.0.0.1", "localhost") else ""
    until = time.monotonic() + patience
    while True:
        try:
            return socket.create_server((host, port), backlog=64)
        except OSError as error:
            if not pause(until):
                why = os.strerror(error.errno or 0)  # the error's own text repeats the address
                raise UserError(
                    f"port {port} is taken ({why}); choose another one with MASTER_PORT"
                ) from None
