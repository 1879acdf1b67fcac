"""Rewards from a service over HTTP, asked in batches.

POST to the address, JSON: `{"prompts": […], "completions": […], "solutions": […]}`, each a list of
texts of one length. The answer: `{"rewards": [number or null, …]}`, optionally with `"why": [text,
…]`.
"""

import json
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from workloads.errors import Retry
from workloads.grpo.rewards.scoring import Batch, RewardFailed, Score, completion_text

_AT_ONCE = 64  # completions in a request
_SECONDS = 60.0
PAUSES = (1.0, 5.0)  # seconds before another attempt
_SHOWN = 200
_BUSY = (429, 502, 503, 504)  # HTTP codes of a service, or a proxy before it, that may answer later


class ServiceLost(Retry, RewardFailed):
    """A service that does not answer: a Retry, so that the run restarts from its checkpoint."""


class RewardService:
    """Scores completions by asking `address`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, batch: Batch) -> list[Score]:
        """One score a completion; raises RewardFailed for an invalid answer."""
        prompts = [completion_text(prompt) for prompt in batch.prompts] or [""] * len(batch)
        scores: list[Score] = []
        for start in range(0, len(batch), _AT_ONCE):
            batch.progress()
            part = slice(start, start + _AT_ONCE)
            question: dict[str, Sequence[Any]] = {
                "prompts": prompts[part],
                "completions": batch.texts[part],
                "solutions": list(batch.solutions[part]),
            }
            scores += self._scores(question)
        return scores

    def _scores(self, question: dict[str, Sequence[Any]]) -> list[Score]:
        answer = self._answer(json.dumps(question).encode())
        count = len(question["completions"])
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list) or len(rewards) != count:
            raise RewardFailed(
                f'{self._address}: expected {{"rewards": [{count} numbers]}}, found '
                f"{json.dumps(answer)[:_SHOWN]}; fix the service"
            )
        why = answer.get("why") or [""] * count
        if not isinstance(why, list) or len(why) != count:
            raise RewardFailed(
                f'{self._address}: expected "why" as a list of {count} texts, found '
                f"{json.dumps(why)[:_SHOWN]}; fix the service, or leave it out"
            )
        return [Score(value, str(reason)) for value, reason in zip(rewards, why, strict=True)]

    def _answer(self, body: bytes) -> Any:
        problem: Exception | None = None
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            request = Request(self._address, body, {"Content-Type": "application/json"})
            try:
                with urlopen(request, timeout=_SECONDS) as answer:
                    return json.loads(answer.read())
            except HTTPError as error:
                said = error.read().decode("utf-8", "replace")[:_SHOWN]
                problem = RewardFailed(f"{self._address}: HTTP {error.code}: {said}")
                if error.code not in _BUSY:
                    raise problem from error
            except (URLError, OSError, ValueError, HTTPException) as error:
                problem = error
        raise ServiceLost(
            f"{self._address}: expected rewards from this service, found none in "
            f"{1 + len(PAUSES)} attempts: {problem}; start it, or look at its log"
        ) from problem
