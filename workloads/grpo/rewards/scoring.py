"""Scoring of completions, with one interface for built-in and user-defined rewards.

A reward takes a `Batch` and gives a `Score` for each of its completions, None where it abstains.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from workloads.errors import TataraError, UserError
from workloads.grpo.rewards import functions
from workloads.grpo.rewards.answers import Verdict

if TYPE_CHECKING:
    from workloads.grpo.config import Rewards

OnError = Literal["stop", "abstain", "zero"]
OVERDUE = "not compared: the time for one step was used up (rewards.step_seconds)"
_SHOWN = 200  # characters of a completion in a message


@dataclass(frozen=True)
class Score:
    """Reward of one completion, None where the reward abstains, and a short reason."""

    value: float | None
    why: str = ""


@dataclass(frozen=True)
class Batch:
    """Completions, each with its prompt, token ids, solution and the row's other columns.

    `completions` and `prompts` are texts or turns, as the trainer has them. `trainer_state` is
    transformers' own; `log_metric(name, value)` and `log_extra(column, values)` are TRL's.
    """

    completions: Sequence[Any]
    solutions: Sequence[str | Sequence[str]]
    prompts: Sequence[Any] = ()
    completion_ids: Sequence[Sequence[int]] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    trainer_state: Any = None
    log_metric: Callable[[str, float], None] = lambda name, value: None
    log_extra: Callable[[str, list[Any]], None] = lambda column, values: None
    progress: Callable[[], None] = lambda: None
    deadline: float = math.inf  # by time.monotonic(); later scores count as 0

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def texts(self) -> list[str]:
        """The completions as texts."""
        return [completion_text(completion) for completion in self.completions]


Judge = Callable[[str, str], Verdict]
ScoreBatch = Callable[[Batch], Sequence[Score]]
BUILT_IN: Mapping[str, Judge] = MappingProxyType(
    {
        "accuracy_extracted": functions.judge_extracted,
        "accuracy": functions.judge_accuracy,
        "format": functions.judge_format,
        "format_tolerant": functions.judge_format_tolerant,
    }
)


class RewardFailed(UserError):
    """A reward raised, or returned no number; the run may go on if its profile allows it."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward under its name in the profile, and its weight in the sum."""

    name: str
    score_batch: ScoreBatch
    weight: float = 1.0

    def scores(self, batch: Batch) -> list[Score]:
        """One score a completion, before weighting; RewardFailed names the reward."""
        texts = batch.texts  # before a plug-in may change the list
        try:
            found = list(self.score_batch(batch))
        except TataraError:
            raise
        # A plug-in is foreign code: anything it raises is reported as that reward's failure, and
        # sys.exit() in it ends no run.
        except (Exception, SystemExit) as error:
            raise RewardFailed(
                f"reward {self.name} failed with {type(error).__name__}: {error}, on "
                f"{len(texts)} completions, the first {texts[0][:_SHOWN]!r}"
            ) from error
        if len(found) != len(texts):
            raise RewardFailed(
                f"expected {len(texts)} numbers from reward {self.name}, one a completion, found "
                f"{len(found)}; fix the reward"
            )
        for score, text in zip(found, texts, strict=True):
            self._check(score.value, text)
        return found

    def __call__(self, completion: str, solution: str) -> float | None:
        """The reward of one completion; None where it abstains."""
        return self.scores(Batch([completion], [solution]))[0].value

    def _check(self, value: Any, text: str) -> None:
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise RewardFailed(
                f"expected a finite number or None from reward {self.name}, found {value!r} for "
                f"the completion {text[:_SHOWN]!r}; fix the reward"
            )


def load_reward(spec: str, weight: float = 1.0) -> WeightedReward:
    """The reward called `spec`.

    A name of ours, a plug-in as `module:function`, a reward model as `model:HUB-ID-OR-FOLDER`, or
    the address of a service, `http://…`. Raises UserError.
    """
    if not math.isfinite(weight):
        raise UserError(f"expected a finite weight for reward {spec}, found {weight}; correct it")
    if spec in BUILT_IN:
        return WeightedReward(spec, _of_judge(BUILT_IN[spec]), weight)
    if spec.startswith(("http://", "https://")):
        from workloads.grpo.rewards.service import RewardService

        return WeightedReward(spec, RewardService(spec), weight)
    if spec.startswith("model:"):
        from workloads.grpo.rewards.reward_model import RewardModel

        return WeightedReward(spec, RewardModel(spec.removeprefix("model:")), weight)
    if ":" in spec:
        from workloads.grpo.rewards.plug_ins import load_plug_in

        return WeightedReward(spec, load_plug_in(spec), weight)
    raise UserError(unknown_reward(spec))


def unknown_reward(spec: str) -> str:
    """Message for an unknown reward."""
    near = get_close_matches(spec, BUILT_IN, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return (
        f'expected a reward among {", ".join(BUILT_IN)}, a plug-in as "module:function", '
        f'"model:NAME" or an address "http://…", found "{spec}"{hint}'
    )


def is_known(spec: str) -> bool:
    """Whether a name can be a reward, without importing anything."""
    return spec in BUILT_IN or ":" in spec


def _of_judge(judge: Judge) -> ScoreBatch:
    def score(batch: Batch) -> list[Score]:
        return [
            _judged(judge, batch, *pair) for pair in zip(batch.texts, batch.solutions, strict=True)
        ]

    return score


def _judged(judge: Judge, batch: Batch, completion: str, solution: str | Sequence[str]) -> Score:
    """The first right one of several solutions; 0 once the time for a step is used up."""
    if time.monotonic() > batch.deadline:
        return Score(0.0, OVERDUE)
    batch.progress()
    solutions = [solution] if isinstance(solution, str) else list(solution)
    verdict = Verdict(False, "no solution")
    for wanted in solutions:
        verdict = judge(completion, wanted)
        if verdict.match:
            break
    return Score(float(verdict.match), verdict.why)


class Scorer:
    """All rewards of a run, and what happens where one fails: `on_error`.

    `stop` lets RewardFailed out; `abstain` gives None and `zero` 0 for the completions that failed,
    one by one where the reward can be asked so. `failures` counts them by reward. `problem`: why a
    reward failed during training; all ranks must learn it before one of them stops.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        on_error: OnError = "stop",
        report: Callable[[str], None] = lambda text: None,
        progress: Callable[[], None] = lambda: None,
        step_seconds: float = math.inf,
    ) -> None:
        self.rewards, self.on_error, self._report = tuple(rewards), on_error, report
        self._progress, self._step_seconds = progress, step_seconds
        self.problem: TataraError | None = None
        self.failures: dict[str, int] = {}
        self.last: dict[str, list[Score]] = {}

    def score(self, reward: WeightedReward, batch: Batch) -> list[Score]:
        """The scores of one reward, remembered in `last` under its name."""
        deadline = time.monotonic() + self._step_seconds
        batch = replace(batch, progress=self._progress, deadline=deadline)
        try:
            found = reward.scores(batch)
        except RewardFailed as error:
            if self.on_error == "stop":
                raise
            found = (
                list(self._one_by_one(reward, batch)) if len(batch) > 1 else [self._given(error)]
            )
            count = sum(score.why.startswith("failed: ") for score in found)
            if reward.name not in self.failures:
                self._report(f"{error}; it {self._outcome()} (rewards.on_error={self.on_error})")
            self.failures[reward.name] = self.failures.get(reward.name, 0) + count
        overdue = sum(score.why == OVERDUE for score in found)
        if overdue:
            self._report(
                f"reward {reward.name}: {overdue} of {len(found)} completions count as 0, they "
                f"would take longer than rewards.step_seconds={self._step_seconds:g}"
            )
        self.last[reward.name] = found
        return found

    def _one_by_one(self, reward: WeightedReward, batch: Batch) -> Iterator[Score]:
        """Score one by one, so that a failing completion does not cost the others their scores."""
        for place in range(len(batch)):
            try:
                yield reward.scores(part_of(batch, place))[0]
            except RewardFailed as error:
                yield self._given(error)

    def _given(self, error: RewardFailed) -> Score:
        return Score(None if self.on_error == "abstain" else 0.0, f"failed: {error}"[:_SHOWN])

    def _outcome(self) -> str:
        return "abstains" if self.on_error == "abstain" else "counts as 0"


def part_of(batch: Batch, place: int) -> Batch:
    """The batch of one completion alone."""
    alone = slice(place, place + 1)
    return Batch(
        batch.completions[alone],
        batch.solutions[alone],
        batch.prompts[alone],
        batch.completion_ids[alone],
        {name: values[alone] for name, values in batch.columns.items()},
        batch.trainer_state,
        batch.log_metric,
        batch.log_extra,
        batch.progress,
        batch.deadline,
    )


def load_scorer(
    rewards: "Rewards",
    report: Callable[[str], None] = lambda text: None,
    progress: Callable[[], None] = lambda: None,
) -> Scorer:
    """The rewards of a profile; UserError for one that does not exist."""
    loaded = [load_reward(function.name, function.weight) for function in rewards.functions]
    return Scorer(loaded, rewards.on_error, report, progress, rewards.step_seconds)


def try_rewards(
    rewards: Sequence[WeightedReward],
    said: str,
    solution: str,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Call rewards once before training, so that a failing plug-in is named.

    said: a right answer; columns: the row's own. Returns a line for each reward that gives it
    nothing.
    """
    turns = [{"role": "assistant", "content": said}]
    rows = {name: [value] for name, value in columns.items()}
    prompts = rows.pop("prompt", [[{"role": "user", "content": ""}]])
    batch = Batch([turns], [solution], prompts, [[0]], rows, trainer_state=_first_state())
    return [
        f"reward {reward.name} gives 0 to {said[:80]!r}, a right answer where the solution is "
        f"{solution[:80]!r}"
        for reward in rewards
        if reward.scores(batch)[0].value == 0
    ]


def _first_state() -> Any:
    from transformers import TrainerState

    return TrainerState()


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion as trainers pass it: a text, or turns with text parts.

    Of turns only the model's count, not those of tools.
    """
    if isinstance(completion, str):
        return completion
    return "".join(_said(turn) for turn in completion if turn.get("role") != "tool")


def _said(turn: Mapping[str, Any]) -> str:
    """A turn's text; where tools can be called, TRL takes the thinking out of the content."""
    thinking = turn.get("reasoning_content")
    before = f"<think>{thinking}</think>" if thinking else ""
    return before + _content_text(turn.get("content"))


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def for_trainer(
    reward: WeightedReward, scorer: Scorer | None = None
) -> Callable[..., list[float | None]]:
    """`reward` as TRL calls it: lists in, a list out, the dataset's columns by keyword."""
    own = scorer or Scorer([reward])

    def scores(
        completions: Sequence[Any],
        solution: Sequence[str],
        prompts: Sequence[Any] = (),
        completion_ids: Sequence[Sequence[int]] = (),
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        log_extra: Callable[[str, list[Any]], None] = lambda column, values: None,
        **columns: Any,
    ) -> list[float | None]:
        batch = Batch(
            completions,
            solution,
            prompts,
            completion_ids,
            columns,
            trainer_state,
            log_metric,
            log_extra,
        )
        try:
            return [score.value for score in own.score(reward, batch)]
        except TataraError as error:
            if scorer is None:
                raise
            scorer.problem = error
            scorer.last[reward.name] = [Score(None, f"failed: {error}")] * len(batch)
            return [0.0] * len(batch)

    scores.__name__ = reward.name  # the name under which the trainer logs it
    return scores
