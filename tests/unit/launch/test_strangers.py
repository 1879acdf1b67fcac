"""O-A4: whoever does not know the secret changes nothing, whatever it sends."""

import contextlib
import json
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.strangers import KINDS, RESULT, cut_off, lines
from tests.unit.launch.test_rendezvous import SECRET, Nodes, until
from workloads.errors import EXIT_DONE, EXIT_RETRY, Retry, Stopped, UserError
from workloads.launch.connection import Link, introduce
from workloads.launch.member import Member
from workloads.launch.messages import Hello, Outcome, StopRequest, Terms, parsed

pytestmark = pytest.mark.unit


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two nodes that have met; a thread that ends by an exception fails the test."""
    ended: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    made = Nodes([tmp_path])
    with ThreadPoolExecutor(2) as pool:
        for node in made.meet(pool):
            node.result(60)
    yield made
    made.close()
    assert ended == []


def connect(nodes: Nodes) -> socket.socket:
    return socket.create_connection(("127.0.0.1", nodes.first.port), 60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_changes_nothing_and_is_cut_off(nodes: Nodes, kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with connect(nodes) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(KINDS[kind])
        heard = cut_off(stranger).splitlines()
    assert [json.loads(line)["type"] for line in heard] in (
        ["challenge"],
        [],
        ["challenge", "stranger"],
    )
    assert nodes.first.stop_asked() is None and nodes.second.stop_asked() is None
    assert nodes.first.trouble() is None and nodes.second.trouble() is None
    # In KiB; the longest kind is of 8 MiB, and the system may give memory in pages of 2 MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 6 << 10


def test_what_was_recorded_is_of_no_use(nodes: Nodes) -> None:
    """A hello answers one challenge; the next connection has another."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        member = nodes.another("b")
        member.port = trap.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            meeting = pool.submit(member.meet, 0)
            caught, _ = trap.accept()
            caught.sendall(lines({"type": "challenge", "nonce": "1" * 32}))
            hello = caught.makefile("rb").readline()
            caught.sendall(lines({"type": "stranger"}))
            with pytest.raises(UserError, match="does not know the secret of this run"):
                meeting.result(60)
            caught.close()
    with connect(nodes) as stranger:
        stranger.sendall(hello)
        assert b"stranger" in cut_off(stranger)
    assert nodes.first.trouble() is None


def test_many_that_say_nothing_keep_no_node_out(nodes: Nodes) -> None:
    idle = [connect(nodes) for _ in range(40)]
    nodes.second.close()
    until(lambda: nodes.first.missing() == [1])
    back = nodes.another("b")
    with ThreadPoolExecutor(1) as pool:
        meeting = pool.submit(back.meet, 1)
        until(lambda: not nodes.first.missing())
        nodes.first.meet(1)
        assert meeting.result(60).attempt == 1
    assert len(nodes.first._unseated) <= 16
    back.close()
    for stranger in idle:
        stranger.close()


def test_a_wrong_secret_is_told_on_both_sides(nodes: Nodes) -> None:
    stray = nodes.another("b", secret=b"of another run")
    with pytest.raises(UserError, match="put one line TATARA_RENDEZVOUS_SECRET="):
        stray.meet(0)
    until(lambda: "127.0.0.1 does not know the secret of this run and was not let in" in nodes.told)


@pytest.mark.parametrize("say", [b"", lines([]), lines({"type": "challenge", "nonce": "../x"})])
def test_a_false_node_0_is_not_believed(tmp_path: Path, say: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        terms = Terms(0.5, 0.2, lambda: 0, lambda text: None)
        member = Member(Hello(1, "b", 1, "same"), "127.0.0.1", port, tmp_path, terms, SECRET)
        with ThreadPoolExecutor(1) as pool:
            meeting = pool.submit(member.meet, 0)
            server.settimeout(0.2)
            while not meeting.done():
                with contextlib.suppress(OSError):  # nobody came, or has left again
                    server.accept()[0].sendall(say)
            with pytest.raises(Retry, match="node 0 did not answer"):
                meeting.result()


@pytest.mark.parametrize(
    "line",
    [
        lines({"type": "result"}),
        lines({**RESULT, "code": 99}),
        lines({**RESULT, "code": "2"}),
        lines({"type": "stop", "number": 9, "by": ""}),
        lines([]),
        b"a" * (65 << 10) + b"\n",
    ],
)
def test_a_node_that_breaks_the_rules_is_lost_and_no_more(nodes: Nodes, line: bytes) -> None:
    nodes.second.close()
    until(lambda: nodes.first.missing() == [1])
    link = Link(connect(nodes), 10)
    introduce(link, SECRET, Hello(1, "b", 1, "same"))
    until(lambda: not nodes.first.missing())
    link.write(line.removesuffix(b"\n"))
    until(lambda: nodes.first.missing() == [1], 20)  # sooner than by its silence
    verdict = nodes.first.settle(Outcome(EXIT_DONE, ""), may_restart=False)
    assert verdict == Outcome(EXIT_RETRY, "lost node 1 (b)")


def test_an_unsigned_line_ends_the_connection(nodes: Nodes) -> None:
    assert nodes.second._connection is not None
    nodes.second._connection._link._socket.sendall(lines({"type": "stop", "number": 15, "by": ""}))
    until(lambda: nodes.first.missing() == [1])
    assert nodes.first.stop_asked() is None


def test_a_stop_says_whose_it_was(nodes: Nodes) -> None:
    nodes.second.ask_stop(StopRequest(15))
    until(lambda: nodes.first.stop_asked() is not None)
    wish = nodes.first.stop_asked()
    assert wish == StopRequest(15, "node 1, b")
    nodes.first.ask_stop(wish)
    until(lambda: nodes.second.stop_asked() is not None)
    assert nodes.second.stop_asked() == wish
    with pytest.raises(Stopped, match="stopped by node 1, b while the nodes were meeting"):
        nodes.second.close()
        nodes.first.meet(1)


def test_texts_of_other_nodes_are_one_clean_line() -> None:
    reason = parsed(lines({**RESULT, "reason": "a\x1b[31m\nb" + "x" * 9000}))["reason"]
    assert reason.startswith("a [31m bxx") and len(reason) == 4000
