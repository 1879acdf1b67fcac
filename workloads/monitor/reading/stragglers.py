"""Finds ranks that progress but are behind the others, or slower."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from workloads.monitor.reading.ranks import RankStatus
from workloads.run.events import Phase

# Heartbeats are written every second and read at any moment: such a difference is no lag.
_EXPLAINED = 3.0  # seconds
_LEAST_LAG = 2  # steps
_LAG_UNTIMED = 10  # steps of a lag, while the duration of a step is unknown
_SLOWER = 4 / 3  # factor on the median time of a step
# Seconds between heartbeats for a speed: at least, and at most.
_LEAST_STEPS, _LEAST_SECONDS, _WINDOW = 10, 10.0, 120.0


@dataclass
class Stragglers:
    """Remembers the steps of each rank's heartbeats by that rank's own clock."""

    _steps: dict[tuple[int, int, int], deque[tuple[float, int]]] = field(default_factory=dict)

    def mark(self, ranks: Sequence[RankStatus], usual: float | None) -> list[RankStatus]:
        """The same ranks, with lagging ones marked `behind` or `slow`; `usual`: seconds a step."""
        going = [rank for rank in ranks if rank.code is None and rank.phase == Phase.TRAINING]
        self._remember(going)
        timed = [replace(rank, pace=self._pace(rank)) for rank in going]
        paces = [rank.pace for rank in timed if rank.pace is not None]
        pace = median(paces) if paces else usual
        front = median(rank.step for rank in going) if going else 0
        found = {rank.rank: _marked(rank, front, pace) for rank in timed}
        return [found.get(rank.rank, rank) for rank in ranks]

    def _remember(self, ranks: Iterable[RankStatus]) -> None:
        before, self._steps = self._steps, {}
        for rank in ranks:
            key = (rank.rank, rank.attempt, rank.pid)
            steps = self._steps[key] = before.get(key) or deque()
            if rank.beaten is not None and (not steps or steps[-1][0] < rank.beaten):
                steps.append((rank.beaten, rank.step))
            while steps and steps[-1][0] - steps[0][0] > _WINDOW:
                steps.popleft()

    def _pace(self, rank: RankStatus) -> float | None:
        """Seconds a step of one rank, None while there are too few heartbeats."""
        steps = self._steps[rank.rank, rank.attempt, rank.pid]
        if not steps:
            return None
        seconds, count = steps[-1][0] - steps[0][0], steps[-1][1] - steps[0][1]
        enough = seconds >= _LEAST_SECONDS and count >= _LEAST_STEPS
        return seconds / count if enough else None


def _marked(rank: RankStatus, front: float, pace: float | None) -> RankStatus:
    """`front`: the step that half of all ranks have reached; `pace`: the median seconds a step."""
    if rank.state != "ok" or not rank.step:
        return rank
    lag = int(front - rank.step)
    explained = _LAG_UNTIMED - 1 if pace is None else _EXPLAINED / pace
    if lag >= _LEAST_LAG and lag > explained:
        return replace(rank, state="behind", lag=lag)
    if rank.pace is not None and pace is not None and rank.pace >= _SLOWER * pace:
        return replace(rank, state="slow")
    return rank
