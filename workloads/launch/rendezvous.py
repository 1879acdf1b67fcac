"""Where the nodes of a job meet: node 0 coordinates, every message is one JSON object in a line.

The rendezvous is up before torch is imported and stays up beside the training. It gives all nodes
one run id, checks whether they share `outputs/`, detects a lost node, and makes all nodes end or
restart together. Node 0 listens on the port after MASTER_PORT. One attempt:

    member                                         node 0
      | <-> each proves the secret (connection.py)   |   Hello: node, host, ranks, settings
      | <- probe: a file in outputs/                 |   once every node is there
      | -> seen: whether it is here too              |
      | <- start: run id, attempt, hosts             |   all nodes start torchrun
      | <-> stop: a signal and whose                 |   at any time; node 0 tells the others
      | -> result: how this node's part ended        |
      | <- verdict: how the job ended, or again      |   the worst of all; again: the next attempt

A member that is lost, or sends what is no message, may reconnect within `peer_timeout`. It is then
part of the next attempt: an attempt keeps to the connections that were told to start. What came
over a connection before it was lost counts: whoever waits asks first whether it is lost, and looks
into the inbox after that. A stranger, who does not know the secret, has no effect.

Where it does not go as above:

    a node does not come         node 0: verdict 75 to those that came, naming the missing ones
    a node has other settings    node 0: verdict 2 to all, before anything is started
    a node cannot begin          its result, outside of an attempt too: the verdict is that
    a node is silent             node 0: result 75 in its name; again, while restarts are left
    node 0 is silent             members stop their ranks, then look for it again from the top
    a stop while nodes meet      the job ends as one that was stopped; no attempt begins

Time limits, in seconds of the waiting side's own clock:

    node_timeout                 for all nodes to come, and for the start by node 0
    peer_timeout                 of silence, then the other side is lost
    peer_timeout / 5             between two beats: four may be late or lost
    20 (coordinator._SETTLE)     for the other results, once node 0's part has ended
    15 (attempt._GRACE)          for the ranks here to end by themselves, once a node is in trouble
"""

from workloads.errors import EXIT_RETRY
from workloads.launch.coordinator import Coordinator
from workloads.launch.member import Member
from workloads.launch.messages import Meeting, Outcome, StopRequest


class Alone:
    """Rendezvous of a job with one node."""

    def __init__(self, run_id: str, host: str) -> None:
        self._run_id, self._host = run_id, host

    def meet(self, attempt: int) -> Meeting:
        return Meeting(self._run_id, attempt, shared=True, hosts=(self._host,))

    def trouble(self) -> str | None:
        return None

    def ask_stop(self, wish: StopRequest) -> None:
        return None

    def stop_asked(self) -> StopRequest | None:
        return None

    def settle(self, mine: Outcome, may_restart: bool) -> Outcome:
        return Outcome(mine.code, mine.reason, again=mine.code == EXIT_RETRY and may_restart)

    def end(self, outcome: Outcome) -> None:
        return None

    def close(self) -> None:
        return None


Rendezvous = Alone | Coordinator | Member
