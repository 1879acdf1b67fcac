"""One robot's episode: the policy's memory of it, and the chunk that is being executed.

Serving, the reach simulator and CALVIN call policies through `act`, so that a policy behaves alike
in all of them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workloads.errors import UserError
from workloads.vla.policy import Observation, Policy


@dataclass(frozen=True)
class Execution:
    """Execution of chunks.

    steps: actions of a chunk before the next one is used; None: one if the policy remembers, else
    the whole chunk. ensemble: execute the weighted mean of all predictions for a moment, the oldest
    with weight 1, each later one e^-ensemble times the one before, as ACT does.
    """

    steps: int | None = None
    ensemble: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UserError(f"expected at least 1 step of a chunk, found {self.steps}")
        if self.ensemble is not None and not (0 <= self.ensemble < np.inf):
            raise UserError(f"expected a weight of 0 or more to ensemble, found {self.ensemble}")
        if self.ensemble is not None and self.steps not in (None, 1):
            raise UserError(
                f"expected one step of a chunk with ensembling, found {self.steps}; leave one out"
            )


@dataclass
class PolicyEpisode:
    """memory: the policy's own; frames: number of frames so far.

    chunks: float64 [chunk, A] each, the newest last, each with its age in frames.
    """

    memory: Any
    frames: int = 0
    chunks: deque[tuple[int, np.ndarray]] = field(default_factory=deque)


def act(
    policy: Policy,
    episodes: Sequence[PolicyEpisode],
    observations: Sequence[Observation],
    unnorm_key: str | None = None,
    execution: Execution = Execution(),
) -> np.ndarray:
    """Actions for the current frame of N episodes, float64 [N, A]; each advances by a frame.

    A policy with memory gets every frame, also where the action is from an earlier chunk. After a
    UserError nothing has changed.
    """
    asked = [
        row
        for row, episode in enumerate(episodes)
        if policy.remembers or execution.ensemble is not None or _is_over(episode, execution.steps)
    ]
    found: dict[int, np.ndarray] = {}
    if asked:
        memories = [episodes[row].memory for row in asked]
        chunks = policy.act([observations[row] for row in asked], unnorm_key, memories)
        found = dict(zip(asked, chunks, strict=True))
    return np.stack(
        [_next(episode, found.get(row), policy, execution) for row, episode in enumerate(episodes)]
    )


def _is_over(episode: PolicyEpisode, steps: int | None) -> bool:
    """Whether the newest chunk has no action left."""
    if not episode.chunks:
        return True
    age, chunk = episode.chunks[-1]
    return age >= min(len(chunk), steps or len(chunk))


def _next(
    episode: PolicyEpisode, chunk: np.ndarray | None, policy: Policy, execution: Execution
) -> np.ndarray:
    """The action of this frame, [A]; `chunk`: a new prediction for it, if any."""
    chunks, steps = episode.chunks, execution.steps or (1 if policy.remembers else None)
    if chunk is not None and (execution.ensemble is not None or _is_over(episode, steps)):
        chunks.append((0, chunk))
    while execution.ensemble is None and len(chunks) > 1:
        chunks.popleft()
    while chunks[0][0] >= len(chunks[0][1]):
        chunks.popleft()
    predicted = np.stack([chunk[age] for age, chunk in chunks])
    episode.chunks = deque((age + 1, chunk) for age, chunk in chunks)
    episode.frames += 1
    if len(predicted) == 1:
        return np.asarray(predicted[0])
    return _mean(predicted, execution.ensemble or 0.0, policy.binary)


def _mean(predicted: np.ndarray, weight: float, binary: tuple[int, ...]) -> np.ndarray:
    """Weighted mean [A] of predictions [n, A], the oldest first; a binary number has the value with
    more weight, or of equal ones the newest."""
    weights = np.exp(-weight * np.arange(len(predicted)))
    mean = np.asarray(weights @ predicted / weights.sum())
    for place in binary:
        values = predicted[:, place]
        by_value = {value: weights[values == value].sum() for value in values}
        most = max(by_value.values())
        mean[place] = next(v for v in reversed(values) if by_value[v] >= most - 1e-12)
    return mean
