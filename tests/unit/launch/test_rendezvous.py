"""Nodes meet over real sockets on loopback."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.waiting import until
from workloads.errors import EXIT_DONE, EXIT_RETRY, EXIT_USER, Retry, Stopped, UserError
from workloads.launch.coordinator import Coordinator
from workloads.launch.member import Member
from workloads.launch.messages import Hello, Meeting, Outcome, Terms
from workloads.launch.network import free_ports
from workloads.launch.rendezvous import Alone

pytestmark = pytest.mark.unit
SECRET = b"of the tests"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


class Nodes:
    """Two nodes of one job, each with its own idea of `outputs/`."""

    def __init__(
        self, outputs: list[Path], timeout: float = 60, config: str = "same", silence: float = 30
    ) -> None:
        self.stop = threading.Event()
        self.told: list[str] = []
        terms = Terms(timeout, silence, lambda: 15 * self.stop.is_set(), self.told.append)
        port = free_ports() + 1  # torchrun has the one before it
        here = "127.0.0.1"
        self.first = Coordinator(
            Hello(0, "a", 1, "same"), 2, here, port, "run-1", outputs[0], terms, SECRET
        )
        self.second = Member(Hello(1, "b", 1, config), here, port, outputs[-1], terms, SECRET)

    def meet(self, pool: ThreadPoolExecutor, attempt: int = 0) -> list[Future[Meeting]]:
        return [pool.submit(node.meet, attempt) for node in (self.first, self.second)]

    def another(self, host: str, node: int = 1, secret: bytes = SECRET) -> Member:
        """One more process that says it is a node of this job."""
        mine = self.second
        hello = Hello(node, host, 1, "same")
        return Member(hello, mine.address, mine.port, mine.outputs, mine.terms, secret)

    def close(self) -> None:
        self.second.close()
        self.first.close()


def test_all_nodes_learn_the_run_id_and_that_they_share_a_disk(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path])
    first, second = (node.result(60) for node in nodes.meet(pool))
    assert first == second == Meeting("run-1", 0, shared=True, hosts=("a", "b"))
    assert list(tmp_path.iterdir()) == [], "the probe file is gone"
    nodes.close()


def test_separate_disks_are_found_out(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    (tmp_path / "x").mkdir()
    nodes = Nodes([tmp_path, tmp_path / "x"])
    assert [node.result(60).shared for node in nodes.meet(pool)] == [False, False]
    nodes.close()


def test_the_missing_node_is_named_within_the_bound(tmp_path: Path) -> None:
    nodes = Nodes([tmp_path], timeout=0.3)
    with pytest.raises(Retry, match="node 1 did not come within 0 s"):
        nodes.first.meet(0)
    nodes.first.close()
    with pytest.raises(Retry, match="node 0 did not answer at 127.0.0.1"):
        nodes.second.meet(0)


def test_other_settings_on_another_node_are_refused_on_both(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path], config="other")
    first, second = nodes.meet(pool)
    with pytest.raises(UserError, match="node 1 .* has other settings") as caught:
        first.result(60)
    nodes.first.end(Outcome(EXIT_USER, str(caught.value)))
    with pytest.raises(UserError, match="other settings"):
        second.result(60)
    nodes.close()


def test_the_cause_wins_over_what_it_made_others_lose(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    mine = pool.submit(nodes.first.settle, Outcome(EXIT_RETRY, "lost contact with a rank"), True)
    other = pool.submit(nodes.second.settle, Outcome(EXIT_RETRY, "rank 1: SIGKILL"), True)
    expected = Outcome(EXIT_RETRY, "rank 1: SIGKILL", again=True)
    assert mine.result(60) == other.result(60) == expected
    again = [node.result(60) for node in nodes.meet(pool, attempt=1)]
    assert [node.attempt for node in again] == [1, 1]
    mine = pool.submit(nodes.first.settle, Outcome(EXIT_DONE, ""), True)
    other = pool.submit(nodes.second.settle, Outcome(EXIT_USER, "bad row"), True)
    assert mine.result(60) == other.result(60) == Outcome(EXIT_USER, "bad row")
    nodes.close()


def test_a_node_that_is_gone_is_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    assert nodes.first.trouble() is None and nodes.second.trouble() is None
    nodes.second.close()
    verdict = nodes.first.settle(Outcome(EXIT_DONE, ""), may_restart=False)
    assert verdict == Outcome(EXIT_RETRY, "lost node 1 (b)")
    assert nodes.first.trouble() == "lost node 1 (b)"
    nodes.close()


def test_a_node_that_comes_back_early_is_part_of_the_next_attempt(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    nodes.second.close()
    until(nodes.first.missing)
    back = nodes.another("b")
    early = pool.submit(back.meet, 0)
    until(lambda: not nodes.first.missing())
    nodes.first.end(Outcome(EXIT_RETRY, "lost node 1 (b)", again=True))
    assert pool.submit(nodes.first.meet, 1).result(60).attempt == 1
    assert early.result(60).attempt == 1
    back.close()
    nodes.close()


def test_a_node_that_leaves_while_the_nodes_meet_is_waited_for(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path])
    first = pool.submit(nodes.first.meet, 0)
    left = nodes.second._connected(time.monotonic() + 60)
    until(lambda: left.peek("probe"))
    left.close()  # asked, and gone before it answers
    back = nodes.another("b")
    second = pool.submit(back.meet, 0)
    assert first.result(60) == second.result(60) == Meeting("run-1", 0, True, ("a", "b"))
    assert list(tmp_path.iterdir()) == [], "the probe file is gone"
    back.close()
    nodes.close()


def test_a_node_that_is_back_at_once_is_not_in_the_attempt_of_before(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Between two looks of node 0 a node may go and come: its ranks are gone all the same."""
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    nodes.second.close()
    back = nodes.another("b")
    early = pool.submit(back.meet, 0)
    gone = nodes.first._of_attempt[1]
    until(lambda: nodes.first._connections[1] is not gone)
    assert nodes.first.trouble() == "lost node 1 (b)"
    verdict = nodes.first.settle(Outcome(EXIT_RETRY, "lost contact with a rank"), True)
    assert verdict == Outcome(EXIT_RETRY, "lost node 1 (b)", again=True)
    assert pool.submit(nodes.first.meet, 1).result(60).attempt == early.result(60).attempt == 1
    back.close()
    nodes.close()


def test_a_node_of_other_settings_in_the_place_of_one_that_left_is_refused(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nodes = Nodes([tmp_path])
    first = pool.submit(nodes.first.meet, 0)
    left = nodes.second._connected(time.monotonic() + 60)
    until(lambda: left.peek("probe"))
    left.send("seen", seen=True)
    left.close()
    other = nodes.another("b")
    other.me = Hello(1, "b", 1, "other")
    stray = pool.submit(other.meet, 0)
    assert first.result(60).attempt == 0
    until(nodes.first.trouble)
    assert nodes.first.trouble() == "lost node 1 (b)"
    with pytest.raises(UserError, match="has other settings") as caught:
        nodes.first.meet(1)
    nodes.first.end(Outcome(EXIT_USER, str(caught.value)))
    with pytest.raises(UserError, match="other settings"):
        stray.result(60)
    other.close()
    nodes.close()


@pytest.mark.parametrize("again", [False, True])
def test_the_last_word_of_node_0_counts(
    tmp_path: Path, pool: ThreadPoolExecutor, again: bool
) -> None:
    """Node 0 may have ended, and closed, before a busy node looks."""
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    connection = nodes.second._connection
    assert connection is not None
    nodes.first.end(Outcome(EXIT_USER, "bad row", again))
    until(lambda: connection.peek("verdict"))
    nodes.first.close()
    until(lambda: connection.lost(20))
    assert nodes.second.trouble() == "node 0 ended the attempt: bad row"
    if not again:
        with pytest.raises(UserError, match="node 0 ended the job: bad row"):
            nodes.second.meet(1)
    assert nodes.second.settle(Outcome(EXIT_RETRY, "x"), True) == Outcome(
        EXIT_USER, "bad row", again
    )
    nodes.close()


def test_the_last_word_of_a_node_counts(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A node that cannot begin, as where its outputs are read-only, says so and leaves."""
    nodes = Nodes([tmp_path])
    [node.result(60) for node in nodes.meet(pool)]
    nodes.second.end(Outcome(EXIT_USER, "/x: cannot be written"))
    nodes.second.close()
    until(lambda: nodes.first._of_attempt[1].lost(20))
    verdict = nodes.first.settle(Outcome(EXIT_RETRY, "lost contact with a rank"), True)
    assert verdict == Outcome(EXIT_USER, "/x: cannot be written")
    nodes.close()


@pytest.mark.parametrize(
    ("node", "host", "said"),
    [
        (1, "c", "node 1 is b already, and c says that it is too"),
        (2, "c", r"node 2 \(c\) is not expected; set NODE_RANK from 1 to 1"),
    ],
)
def test_a_node_that_is_one_too_many_is_sent_away(
    tmp_path: Path, pool: ThreadPoolExecutor, node: int, host: str, said: str
) -> None:
    nodes = Nodes([tmp_path])
    first, second = nodes.meet(pool)
    assert first.result(60) == second.result(60)
    stray = nodes.another(host, node)
    with pytest.raises(UserError, match=said):
        stray.meet(0)
    assert nodes.first.trouble() is None, "the node that was first goes on"
    stray.close()
    nodes.close()


class Impatient(Terms):
    """Waits for nothing."""

    def pause(self, until: float, seconds: float = 0.1) -> bool:
        return False


@pytest.mark.parametrize("taken", [0, 1], ids=["MASTER_PORT", "the one after it"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, taken: int) -> None:
    port, me = free_ports(), Hello(0, "a", 1, "same")
    terms = Impatient(10, 2, lambda: 0, print)
    with (
        socket.create_server(("127.0.0.1", port + taken)),
        pytest.raises(UserError, match=f"port {port + taken} is taken .* MASTER_PORT"),
    ):
        Coordinator(me, 2, "127.0.0.1", port + 1, "run-1", tmp_path, terms, SECRET)


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    nodes = Nodes([tmp_path])
    nodes.stop.set()
    with pytest.raises(Stopped):
        nodes.first.meet(0)
    nodes.close()


def test_alone_restarts_only_what_is_worth_it() -> None:
    rendezvous = Alone("run", "host")
    assert rendezvous.settle(Outcome(EXIT_RETRY, "x"), True).again
    assert not rendezvous.settle(Outcome(EXIT_RETRY, "x"), False).again
    assert not rendezvous.settle(Outcome(EXIT_USER, "x"), True).again
