"""What somebody who does not know the secret may send to where nodes meet (O-A4)."""

import contextlib
import json
import socket
from typing import Any

HELLO = {"type": "hello", "node": 1, "host": "b", "ranks": 1, "config": "same", "nonce": "0" * 32}
RESULT = {"type": "result", "code": 2, "reason": "\x1b[31mnot from the node"}


def lines(*messages: Any) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


KINDS = {
    "list": b"[]\n",
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "utf8": b"\xff\xfe\n",
    "deep": b"[" * 60_000 + b"\n",
    "number": b'{"type":"hello","node":' + b"9" * 5000 + b"}\n",
    "bad node": lines({**HELLO, "node": "x"}),
    "no node": lines({"type": "hello"}),
    "beat": lines({"type": "beat"}),
    "hello of before": lines({**HELLO, "nonce": ""}),
    "hello": b"0" * 64 + b" " + lines(HELLO),
    "result": b"0" * 64 + b" " + lines(HELLO, RESULT),
    "odd code": b"0" * 64 + b" " + lines(HELLO, {**RESULT, "code": 99}),
    "no code": b"0" * 64 + b" " + lines(HELLO, {"type": "result"}),
    "stop": b"0" * 64 + b" " + lines(HELLO, {"type": "stop", "number": 15, "by": ""}),
    "long": b'{"type":"beat","x":"' + b"a" * (8 << 20),
}


def cut_off(stranger: socket.socket) -> bytes:
    """What it hears until the connection ends."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := stranger.recv(4096):
            heard += piece
    return heard
