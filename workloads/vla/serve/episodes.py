"""The open episodes of a server, by clients' names.

Their number is bounded: the longest idle one is dropped, unless its robot may still be moving.
Frames of a dropped episode are refused, never answered as if it had just begun.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from workloads.errors import UserError
from workloads.vla.episodes import PolicyEpisode
from workloads.vla.policy import Policy
from workloads.vla.serve.messages import ActRequest
from workloads.vla.serve.refusal import Refused

MOST = 64
_MOVING = 30.0  # seconds without a frame after which an episode may be dropped
_REMEMBERED = 1000  # names of dropped episodes to remember


@dataclass
class _Held:
    episode: PolicyEpisode
    task: tuple[str, str | None]  # instruction and unnorm_key
    last: float  # when its last frame came, s


class Episodes:
    """At most `most` at a time. Not for several threads at once."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        if most < 1:
            raise UserError(f"expected room for at least 1 episode, found {most}")
        self.most = most
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the longest idle first
        self._forgotten: deque[str] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def of(self, question: ActRequest, policy: Policy) -> Iterator[PolicyEpisode]:
        """The episode of a frame, stored once the frame was answered.

        It begins with its first frame, a frame with reset, or a new instruction. Raises Refused
        where it was dropped meanwhile, and where there is no room.
        """
        name = question.episode or ""
        task = (question.observation.instruction, question.unnorm_key)
        held = self._held.get(name)
        if held is None and not question.reset and name in self._forgotten:
            raise Refused(
                HTTPStatus.CONFLICT,
                f"episode {name!r} was silent and made room for another; send reset to begin anew",
            )
        if held is None:
            self._make_room()
        goes_on = held is not None and not question.reset and held.task == task
        episode = held.episode if held and goes_on else PolicyEpisode(policy.new_memory())
        yield episode
        if name in self._forgotten:
            self._forgotten.remove(name)
        self._held[name] = _Held(episode, task, self._clock())
        self._held.move_to_end(name)

    def end(self, name: str) -> int | None:
        """End an episode and return its number of frames, None where there is none."""
        held = self._held.pop(name, None)
        return None if held is None else held.episode.frames

    def _make_room(self) -> None:
        if len(self._held) < self.most:
            return
        name, held = next(iter(self._held.items()))
        if self._clock() - held.last < _MOVING:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.most} episodes are going on already; end one (POST /reset), or start the "
                "server with a larger --episodes",
            )
        del self._held[name]
        self._forgotten.append(name)
