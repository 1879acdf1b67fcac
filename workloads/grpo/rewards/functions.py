"""Rewards of GRPO: what a completion is worth, as numbers from 0 to 1.

`accuracy` and `format` are R1-V's to the letter (commit bbbbe3d), oddities included.
math-verify does not see a number that touches a tag, so that `accuracy` reads
`<think>The answer is 7.</think><answer>8</answer>` as 7. `accuracy_extracted` has no such gap: it
takes the answer out of its tags first and compares nothing else.
"""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from workloads.errors import TataraError, UserError
from workloads.grpo.rewards.answers import answers_match, extract_answer
from workloads.grpo.rewards.math_checker import shared_checker

Reward = Callable[[str, str], float]

_FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_TAGGED = re.compile(r"<answer>(.*?)</answer>")  # on one line only, as in R1-V


def accuracy(completion: str, solution: str) -> float:
    """R1-V's accuracy: 1.0 where math-verify or the tagged texts agree, else 0.0.

    math-verify reads both texts whole; where it sees no match, the first one-line
    `<answer>…</answer>` of each is compared as text, or the whole text where there is none.
    """
    if shared_checker().compare(completion, solution).match:
        return 1.0
    return float(_tagged_text(completion) == _tagged_text(solution))


def format(completion: str) -> float:
    """R1-V's format: 1.0 where the whole text is one `<think>…</think> <answer>…</answer>`.

    Only white space may stand between the two, and nothing before or after.
    """
    return float(_FORMAT.fullmatch(completion) is not None)


def accuracy_extracted(completion: str, solution: str) -> float:
    """1.0 where the completion's tagged answer equals the solution's, else 0.0.

    The answer is the first `<answer>…</answer>` outside of the reasoning; without one nothing is
    earned, whatever the reasoning says. A solution without tags counts whole.
    """
    answer = extract_answer(completion)
    if answer is None:
        return 0.0
    wanted = extract_answer(solution)
    return float(answers_match(answer, solution.strip() if wanted is None else wanted))


def _tagged_text(text: str) -> str:
    tagged = _TAGGED.search(text)
    return (tagged[1] if tagged else text).strip()


def _format_of_pair(completion: str, solution: str) -> float:
    return format(completion)


@dataclass(frozen=True)
class WeightedReward:
    """A reward under the name it was asked for, and its share in the sum."""

    name: str
    score: Reward
    weight: float = 1.0

    def __call__(self, completion: str, solution: str) -> float:
        """The reward before weighting; errors name the reward and the completion."""
        try:
            value = self.score(completion, solution)
        except TataraError:
            raise
        # A plug-in is anybody's code: whatever it raises is reported as that reward's failure.
        except Exception as error:
            raise TataraError(
                f"reward {self.name} failed with {type(error).__name__}: {error}, "
                f"on the completion {completion[:200]!r}"
            ) from error
        return _as_number(self.name, value, completion)


def load_reward(spec: str, weight: float = 1.0) -> WeightedReward:
    """The reward named `accuracy`, `format` or `accuracy_extracted`, or a plug-in.

    A plug-in is `module:function`, with the module importable or under the current folder; the
    function takes `(completion, solution)` or `(completion)` as texts and returns a number.
    """
    if not math.isfinite(weight):
        raise UserError(f"expected a finite weight for reward {spec}, found {weight}")
    if ":" in spec:
        return WeightedReward(spec, _plug_in(spec), weight)
    builtin: Mapping[str, Reward] = {
        "accuracy": accuracy,
        "format": _format_of_pair,
        "accuracy_extracted": accuracy_extracted,
    }
    if spec not in builtin:
        near = get_close_matches(spec, builtin, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UserError(
            f'expected a reward among {", ".join(builtin)} or a plug-in as "module:function", '
            f'found "{spec}"{hint}'
        )
    return WeightedReward(spec, builtin[spec], weight)


def try_rewards(rewards: Iterable[WeightedReward], said: str, solution: str) -> list[str]:
    """Rewards asked once before anything is trained, so that a plug-in that fails is named.

    said: a right answer. Gives a line for each reward that it earns nothing from.
    """
    return [
        f"reward {reward.name} gives 0 to {said[:80]!r}, a right answer where the solution is "
        f"{solution[:80]!r}"
        for reward in rewards
        if reward(said, solution) == 0
    ]


def right_completion(solution: str) -> str:
    """R1's form around a solution, which may have its tags already."""
    tagged = solution if extract_answer(solution) else f"<answer> {solution.strip()} </answer>"
    return f"<think> </think> {tagged}"


def _plug_in(spec: str) -> Reward:
    module_name, _, name = spec.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(
            f'expected a reward as "module:function", found "{spec}"; '
            "name a module with dots and one function in it"
        )
    module = _import(module_name, spec)
    function = vars(module).get(name)
    if not callable(function):
        found = "nothing of that name" if function is None else f"a {type(function).__name__}"
        near = get_close_matches(
            name, [key for key, value in vars(module).items() if callable(value)], n=1
        )
        hint = f'; did you mean "{module_name}:{near[0]}"?' if near else ""
        raise UserError(
            f'expected a function {name} in {module_name} for reward "{spec}", found {found}{hint}'
        )
    return _of_pairs(spec, function)


def _import(module_name: str, spec: str) -> ModuleType:
    """Import as `python -m` would: from the environment or from the current folder."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f'expected to import {module_name} for reward "{spec}", found no module '
            f'"{error.name}"; install it or run where {module_name.replace(".", "/")}.py lies'
        ) from error
    # A script without a guard may also end the process.
    except (Exception, SystemExit) as error:
        raise UserError(
            f'expected to import {module_name} for reward "{spec}", found '
            f"{type(error).__name__}: {error}; mend the module"
        ) from error


def _of_pairs(spec: str, function: Callable[..., Any]) -> Reward:
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some functions written in C do not say
        raise UserError(
            f'expected reward "{spec}" to say which arguments it takes, found that it does not; '
            "wrap it in a function of your own"
        ) from error
    for arguments in (2, 1):
        try:
            signature.bind(*range(arguments))
        except TypeError:
            continue
        if arguments == 2:
            return function
        return lambda completion, solution: function(completion)
    raise UserError(
        f'expected reward "{spec}" to take (completion, solution) or (completion), '
        f"found {signature}; give it those arguments"
    )


def _as_number(name: str, value: Any, completion: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"expected a finite number from reward {name}, found {value!r} for the completion "
            f"{completion[:200]!r}; mend the reward"
        )
    return number


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion as trainers hand it over: a text, or turns with text parts."""
    if isinstance(completion, str):
        return completion
    return "".join(_content_text(turn.get("content")) for turn in completion)


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def for_trainer(reward: WeightedReward) -> Callable[..., list[float]]:
    """`reward` as TRL calls it: lists in, a list out, the data set's columns by keyword."""

    def scores(completions: Sequence[Any], solution: Sequence[str], **_: Any) -> list[float]:
        texts = [completion_text(completion) for completion in completions]
        return [reward(text, truth) for text, truth in zip(texts, solution, strict=True)]

    scores.__name__ = reward.name  # the name under which the trainer logs it
    return scores
