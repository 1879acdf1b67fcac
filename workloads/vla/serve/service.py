"""One policy for many clients: one model call at a time, a bounded queue, access by token.

The queue is bounded, since an answer to an old image is useless to a robot.
"""

import hmac
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np

from workloads.errors import UserError
from workloads.vla.episodes import Execution, act
from workloads.vla.policy import Observation, Policy
from workloads.vla.serve.episodes import Episodes
from workloads.vla.serve.messages import ActRequest
from workloads.vla.serve.refusal import Refused

_MOST_WAITING = 8
_MOST_HELD = 512 << 20  # bytes of bodies that are being read or waiting
_REMEMBERED = 1000  # newest answers, for latency percentiles


@dataclass
class PolicyService:
    """State that all connections share: the policy, the token, and counters."""

    policy: Policy
    token: str | None = None
    execution: Execution = Execution()
    episodes: Episodes = field(default_factory=Episodes)
    served: int = 0
    refused: int = 0
    stopping: bool = False
    _waiting: int = 0
    _held: int = 0
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _model: threading.Lock = field(default_factory=threading.Lock)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _since: float = field(default_factory=time.monotonic)
    _warned: bool = False

    def warm_up(self) -> float:
        """Predict one action on grey images, so that no request waits for the warm-up.

        Returns the seconds it took. Raises UserError for a policy without statistics.
        """
        policy, began = self.policy, time.monotonic()
        if not policy.unnorm_keys:
            raise UserError(
                f"{policy.name}: expected statistics to give actions their units, found none; "
                "export a trained run, or put its dataset_statistics.json there"
            )
        grey = np.full((224, 224, 3), 128, np.uint8)
        state = None if policy.state_size is None else np.zeros(policy.state_size)
        observation = Observation({name: grey for name in policy.cameras}, "wait", state)
        policy.act([observation], policy.unnorm_keys[0])
        return time.monotonic() - began

    def may(self, authorization: str | None) -> bool:
        """Whether a request's Authorization header holds the token, if one is set."""
        if self.token is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        # Headers come decoded as Latin-1, whatever they hold.
        same = hmac.compare_digest(given.strip().encode("latin-1"), self.token.encode())
        return scheme.lower() == "bearer" and same

    @contextmanager
    def memory(self) -> Iterator["Held"]:
        """Context that counts the bytes of a body while it is read and answered."""
        held = Held(self)
        try:
            yield held
        finally:
            with self._changed:
                self._held -= held.bytes

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context of one turn in the queue; raises Refused for a full queue, or while stopping."""
        with self._changed:
            if self.stopping:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping")
            if self._waiting >= _MOST_WAITING:
                text = f"{_MOST_WAITING} requests are waiting already; ask again with a new image"
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text)
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()

    def act(self, question: ActRequest) -> tuple[str, int | None]:
        """The answer's text, and the index of its frame in the episode, from 1.

        A single frame is answered with the whole prediction, a frame of an episode with the one
        action to execute now. Raises UserError for an invalid observation.
        """
        policy, observation, key = self.policy, question.observation, question.unnorm_key
        with self._model:
            if question.episode is None:
                frame = None
                actions, is_chunked = policy.act([observation], key)[0], policy.is_chunked
            else:
                with self.episodes.of(question, policy) as episode:
                    actions = act(policy, [episode], [observation], key, self.execution)
                    frame, is_chunked = episode.frames, False
        if not np.isfinite(actions).all():
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the model's action is not finite")
        return question.write(actions, is_chunked), frame

    def warn_once(self) -> None:
        """Warn once that a policy with memory got a request without an episode."""
        if not self._warned:
            self._warned = True
            print(
                "tatara: a request named no episode and was answered as the first frame of one; "
                'this policy remembers: send "episode" with every frame',
                file=sys.stderr,
                flush=True,
            )

    def end(self, name: str) -> int | None:
        """Forget an episode; how many frames it had, None where there is none."""
        with self._model:
            return self.episodes.end(name)

    def note(self, seconds: float, is_action: bool) -> None:
        with self._changed:
            self.served += is_action
            self.refused += not is_action
            if is_action:
                self._took.append(seconds)

    def health(self) -> dict[str, Any]:
        with self._changed:
            took = sorted(1000 * seconds for seconds in self._took)
        latency = {
            name: round(took[round(share * (len(took) - 1))], 2) if took else None
            for name, share in (("p50", 0.5), ("p95", 0.95))
        }
        return {
            "status": "stopping" if self.stopping else "ok",
            "model": self.policy.name,
            "unnorm_keys": list(self.policy.unnorm_keys),
            "cameras": list(self.policy.cameras),
            "state_size": self.policy.state_size,
            "action_shape": list(self.policy.action_shape),
            "remembers": self.policy.remembers,
            "episodes": len(self.episodes),
            "served": self.served,
            "refused": self.refused,
            "latency_ms": latency,
            "uptime_seconds": round(time.monotonic() - self._since, 1),
        }

    def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait for running answers."""
        with self._changed:
            self.stopping = True
            self._changed.wait_for(lambda: self._waiting == 0, seconds)


@dataclass
class Held:
    """Share of one request in the memory for bodies."""

    service: PolicyService
    bytes: int = 0

    def add(self, count: int) -> None:
        """Add bytes; raises Refused where all requests together would hold too many."""
        with self.service._changed:
            if self.service._held + count > _MOST_HELD:
                text = "too much is being sent at once; ask again with a new image"
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text)
            self.service._held += count
            self.bytes += count
