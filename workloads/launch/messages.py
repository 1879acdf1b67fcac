"""Messages between the nodes of a job, and their time limits.

Every message is a JSON object in a line of at most MOST_BYTES. `parsed` knows each kind's fields;
anything else is no message, and ends its connection.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workloads.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_RETRY,
    EXIT_TERMINATED,
    EXIT_USER,
    STOPS,
    Stopped,
)
from workloads.processes import start_of_node

MOST_BYTES = 64 << 10
_MOST_CHARACTERS = 4000  # letters of one text; the longest are reasons, a sentence or two
_MOST_NODES = 100_000
_CODES = (EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_RETRY, *STOPS)


@dataclass(frozen=True)
class Hello:
    """A node's introduction; `config`: a digest, so that different settings never train as one."""

    node: int
    host: str
    ranks: int
    config: str


@dataclass(frozen=True)
class Meeting:
    """Facts that all nodes share once they have met."""

    run_id: str
    attempt: int
    shared: bool
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Result of one node's part, or of the whole job."""

    code: int
    reason: str
    again: bool = False


@dataclass(frozen=True)
class StopRequest:
    """A request to stop: the number of the signal, and the other node that received it, if any."""

    number: int
    by: str = ""


@dataclass
class Terms:
    """Time limits in seconds, and a function for the stop signal's number, 0 without one.

    node_timeout: until all nodes have come; peer_timeout: silence until a node counts as lost;
    cure: what a person can do where a node, by its number, does not come.
    """

    node_timeout: float
    peer_timeout: float
    stopping: Callable[[], int]
    report: Callable[[str], None]
    cure: Callable[[int], str] = start_of_node

    def pause(self, until: float, seconds: float = 0.1) -> bool:
        """Wait a moment; False once `until` (monotonic seconds) has passed; Stopped on a stop."""
        if number := self.stopping():
            raise Stopped("stopped while waiting for other nodes", 128 + number)
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        return time.monotonic() < until


def clean(text: str) -> str:
    """A text of another node as one line without control characters, and not too long."""
    return "".join(
        character if character.isprintable() else " " for character in text[:_MOST_CHARACTERS]
    )


Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _names(value: Any) -> bool:
    return type(value) is list and all(map(_text, value))


def _whole(most: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= most


def _one_of(*allowed: int) -> Check:
    return lambda value: type(value) is int and value in allowed


def _like(pattern: str) -> Check:
    return lambda value: _text(value) and re.fullmatch(pattern, value) is not None


_NUMBER = _one_of(EXIT_INTERRUPTED - 128, EXIT_TERMINATED - 128)
_HEX = _like(r"[0-9a-f]{32}|[0-9a-f]{64}")
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "challenge": {"nonce": _HEX},
    "hello": {
        "node": _whole(_MOST_NODES),
        "host": _text,
        "ranks": _whole(_MOST_NODES),
        "config": _text,
        "nonce": _HEX,
    },
    "welcome": {"proof": _HEX},
    "stranger": {},
    "beat": {},
    "probe": {"name": _like(r"\.probe-[0-9a-f]+"), "word": _text},
    "seen": {"seen": _flag},
    "start": {
        "run_id": _like(r"[A-Za-z0-9][A-Za-z0-9._-]*"),
        "attempt": _whole(_MOST_NODES),
        "shared": _flag,
        "hosts": _names,
    },
    "stop": {"number": _NUMBER, "by": _text},
    "result": {"code": _one_of(*_CODES), "reason": _text},
    "verdict": {"code": _one_of(*_CODES), "reason": _text, "again": _flag},
}


def line_of(kind: str, facts: Mapping[str, Any]) -> bytes:
    """A message as its line, without the end of line."""
    cut = {name: clean(value) if _text(value) else value for name, value in facts.items()}
    return json.dumps({"type": kind, **cut}).encode()


def parsed(line: bytes) -> dict[str, Any]:
    """The message in a line, its texts cleaned; ValueError where it is none."""
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if type(message) is not dict or not _text(message.get("type")):
        raise ValueError("no object with a type")
    checks = FIELDS.get(message["type"])
    if checks is None or message.keys() != {"type", *checks}:
        raise ValueError("unknown kind of message, or other fields than it has")
    if wrong := [name for name, check in checks.items() if not check(message[name])]:
        raise ValueError(f"a wrong value of {wrong[0]}")
    return {name: _cleaned(value) for name, value in message.items()}


def _cleaned(value: Any) -> Any:
    if isinstance(value, list):
        return [clean(item) for item in value]
    return clean(value) if isinstance(value, str) else value
