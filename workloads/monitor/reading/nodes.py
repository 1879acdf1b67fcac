"""Many ranks, grouped by nodes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workloads.monitor.reading.ranks import TROUBLE, RankStatus

_SMALL = 16  # ranks that are shown one by one; for more, a line a node and the ranks in trouble


def are_shown(ranks: Sequence[RankStatus]) -> bool:
    """Whether there are so many ranks that nodes are shown instead."""
    return len(ranks) > _SMALL


@dataclass(frozen=True)
class NodeStatus:
    """The ranks of one node."""

    number: int
    ranks: tuple[RankStatus, ...]

    @property
    def host(self) -> str:
        return self.ranks[0].host

    @property
    def phases(self) -> list[tuple[str, int]]:
        """The phases of its ranks and how many are in each, the commonest first."""
        return Counter(rank.phase for rank in self.ranks).most_common()

    @property
    def steps(self) -> str:
        """The lowest and the highest step of the ranks, one number where they agree."""
        steps = sorted(rank.step for rank in self.ranks)
        return f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,}-{steps[-1]:,}"

    @property
    def memory(self) -> int:
        return sum(rank.memory for rank in self.ranks)

    @property
    def most_silent(self) -> RankStatus:
        return max(self.ranks, key=lambda rank: rank.age)

    @property
    def trouble(self) -> list[RankStatus]:
        return [rank for rank in self.ranks if rank.state in TROUBLE]

    @property
    def state(self) -> str:
        """`ok`, or the number of ranks in trouble: `1 stalled`."""
        states = " ".join(dict.fromkeys(rank.state for rank in self.trouble))
        return f"{len(self.trouble)} {states}" if states else self.ranks[0].state


def nodes_of(ranks: Sequence[RankStatus]) -> list[NodeStatus]:
    """The nodes in their order."""
    found: dict[int, list[RankStatus]] = {}
    for rank in ranks:
        found.setdefault(rank.node, []).append(rank)
    return [NodeStatus(number, tuple(of)) for number, of in sorted(found.items())]


def short_hosts(ranks: Sequence[RankStatus]) -> dict[str, str]:
    """The hosts' names without their domains, if they stay distinct."""
    hosts = {rank.host for rank in ranks}
    short = {host: host if _is_address(host) else host.partition(".")[0] for host in hosts}
    return short if len(set(short.values())) == len(hosts) else {host: host for host in hosts}


def _is_address(host: str) -> bool:
    return host.replace(".", "").isdigit() or ":" in host
