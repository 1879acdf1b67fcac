"""The user's own rewards, as `module:function`.

Accepted are TRL's form, `(prompts, completions, completion_ids, …, **kwargs)` with any column of
the
data by its name, `environments` among them, and the short ones `(completion, solution)` and
`(completion)`. Any may be async. They return a number for each completion, or None to abstain.
"""

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from workloads.errors import UserError
from workloads.grpo.rewards.scoring import Batch, RewardFailed, Score, ScoreBatch


def load_plug_in(spec: str) -> ScoreBatch:
    """The reward that `spec` names, importable or in the current folder; UserError without it."""
    return adapted(spec, find_callable(spec, "reward"))


def find_callable(spec: str, what: str) -> Callable[..., Any]:
    """The function or class that `spec` names for a reward, a tool or an environment.

    Raises UserError where `spec` is not `module:function`, or where the module has no such
    function.
    """
    module_name, _, name = spec.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(
            f'{what}: expected "module:function", found "{spec}"; '
            "name a module with dots and one function in it"
        )
    module = import_module(module_name, f'{what} "{spec}"')
    function = vars(module).get(name)
    if not callable(function):
        found = "nothing of that name" if function is None else f"a {type(function).__name__}"
        near = get_close_matches(
            name, [key for key, value in vars(module).items() if callable(value)], n=1
        )
        hint = f'; did you mean "{module_name}:{near[0]}"?' if near else ""
        raise UserError(
            f'expected a function {name} in {module_name} for {what} "{spec}", found {found}{hint}'
        )
    return function


def import_module(module_name: str, wanted: str) -> ModuleType:
    """Import as `python -m` would: from the environment or from the current folder.

    Raises UserError where the module is missing or fails to import.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected to import {module_name} for {wanted}, found no module "
            f'"{error.name}"; install it or run where {module_name.replace(".", "/")}.py lies'
        ) from error
    # A script without a main guard may also end the process.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"expected to import {module_name} for {wanted}, found "
            f"{type(error).__name__}: {error}; fix the module"
        ) from error


def adapted(spec: str, function: Callable[..., Any]) -> ScoreBatch:
    """Wrap a function of any accepted form as a reward that takes a batch.

    Raises UserError for a function that takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some functions written in C have no signature
        raise UserError(
            f'expected reward "{spec}" to state its arguments, found no signature; '
            "wrap it in a function of your own"
        ) from error
    if not signature.parameters.keys().isdisjoint(("completions", "environments")):
        return _of_batches(spec, function, signature)
    for arguments in (2, 1):
        try:
            signature.bind(*range(arguments))
        except TypeError:
            continue
        return _of_pairs(function, arguments)
    raise UserError(
        f'expected reward "{spec}" to take (completions, **kwargs) as TRL has it, '
        f"(completion, solution) or (completion), found {signature}; give it those arguments"
    )


def _of_batches(
    spec: str, function: Callable[..., Any], signature: inspect.Signature
) -> ScoreBatch:
    takes_all = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()
    )

    def score(batch: Batch) -> list[Score]:
        known = {
            **batch.columns,
            "prompts": batch.prompts,
            "completions": batch.completions,
            "completion_ids": batch.completion_ids,
            "solution": batch.solutions,
            "trainer_state": batch.trainer_state,
            "log_metric": batch.log_metric,
            "log_extra": batch.log_extra,
        }
        if not takes_all:
            _check_columns(spec, signature, known)
            known = {name: known[name] for name in signature.parameters if name in known}
        values = _awaited(function(**known))
        if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
            raise RewardFailed(
                f"expected a list of {len(batch.texts)} numbers from reward {spec}, one a "
                f"completion, found {values!r:.80}; fix the reward"
            )
        return [_score(value) for value in values]

    return score


def _check_columns(spec: str, signature: inspect.Signature, known: dict[str, Any]) -> None:
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if name not in known and parameter.default is parameter.empty
    ]
    if needed:
        raise UserError(
            f'reward "{spec}" takes {", ".join(needed)}, found no column of that name in the data '
            f"({', '.join(sorted(known))}); add the column or give the argument a default"
        )


def _of_pairs(function: Callable[..., Any], arguments: int) -> ScoreBatch:
    def score(batch: Batch) -> list[Score]:
        pairs = zip(batch.texts, batch.solutions, strict=True)
        made = [function(*pair[:arguments]) for pair in pairs]
        if made and inspect.isawaitable(made[0]):
            made = asyncio.run(_together(made))
        return [_score(value) for value in made]

    return score


def _awaited(result: Any) -> Any:
    return asyncio.run(_one(result)) if inspect.isawaitable(result) else result


async def _one(result: Awaitable[Any]) -> Any:
    return await result


async def _together(results: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*results))


def _score(value: Any) -> Score:
    """Convert a number of any library, such as a tensor of one element, to float; others stay."""
    if value is None:
        return Score(None, "abstains")
    try:
        return Score(float(value))
    except (TypeError, ValueError):
        return Score(value)
