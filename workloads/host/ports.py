"""Whether a server may listen on a port of this machine, and for whom."""

import errno
import ipaddress
import socket

from workloads.errors import UserError


def is_port(text: str) -> bool:
    """Whether a text is a port's number; 0 lets the system choose one."""
    return text.isascii() and text.isdecimal() and int(text) < 1 << 16


def is_free(port: int, address: str = "") -> bool:
    """Whether the port is free and this user may listen on it."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


def check_exposed(host: str, token: str | None) -> None:
    """Raise UserError where other machines could reach a server without a token."""
    if token is None and not _is_this_machine(host):
        raise UserError(
            f"--host {host}: expected a token for clients on other machines, found none; set "
            "TATARA_SERVE_TOKEN, or TATARA_SERVE_TOKEN_FILE with the file that holds it"
        )


def unusable(host: str, port: int, error: Exception) -> UserError:
    """The error for an address that cannot be used."""
    return UserError(
        f"{host}:{port} cannot be used ({error}); choose another with --host and --port"
    )


def claim(host: str, port: int) -> socket.socket:
    """Bind a port before a server is ready; raises UserError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        raise unusable(host, port, error) from None
    return taken


def url_of(host: str, port: int, path: str) -> str:
    """Where a server answers, as it can be typed into a client."""
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
