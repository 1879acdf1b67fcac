"""Shared first steps of several verbs: environment, config, and notes on what was chosen."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads import environment
from workloads.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from workloads.config.merge import Provenance


def loaded_environment() -> dict[str, str]:
    """This process's environment with `.env` and secrets added to it."""
    env = environment.load(os.environ)
    environment.apply(env)
    return env


def with_environment(
    main: Callable[[argparse.Namespace, dict[str, str]], int],
) -> Callable[[argparse.Namespace, Sequence[str]], int]:
    """Wrap a command that takes no settings: it gets the environment in their place."""

    def run(args: argparse.Namespace, words: Sequence[str]) -> int:
        no_settings(words)
        return main(args, loaded_environment())

    return run


def settings_follow(
    *modules: str,
) -> Callable[[Callable[..., int]], Callable[[argparse.Namespace, Sequence[str]], int]]:
    """A wrapper for `add_commands`: settings go to the mains of `modules`, no others take any."""
    return lambda main: main if main.__module__ in modules else with_environment(main)


def resolved(profile: str, env: dict[str, str], words: Sequence[str]) -> "tuple[Any, Provenance]":
    """The config of a profile; names that are set but not honoured are reported."""
    path = profile_path(profile, env)
    config, provenance, _ = resolved_to_fit(path, env, words)
    report_ignored(str(path), provenance)
    return config, provenance


def resolved_to_fit(
    path: Path, env: dict[str, str], words: Sequence[str]
) -> "tuple[Any, Provenance, list[str]]":
    """The config of a profile's file, and the settings that were given.

    Where RECIPE or the profile itself says auto, and it is not safe on the GPUs here, the planner's
    settings come before the words; why goes into the environment, for the run's manifest.
    """
    from workloads.config.merge import resolve

    config, provenance = resolve(path, env, words)
    wish = env.get("RECIPE") or ("auto" if config.profile == "auto" else "")
    if wish != "auto" or (env.get("RECIPE") and config.recipes):
        return config, provenance, list(words)
    from workloads.plan.suggest import automatic
    from workloads.run.manifest import CHOICE

    outside = ("environment ", "command line ")
    pinned = [name for name, source in provenance.items() if source.startswith(outside)]
    if (choice := automatic(config, env, pinned)) is None:
        return config, provenance, list(words)
    env[CHOICE] = choice.reason
    print(f"tatara: chosen for the GPUs here: {choice.reason}", file=sys.stderr)
    words = [*choice.settings, *words]
    config, provenance = resolve(path, env, words)
    return config, provenance, words


def report_ignored(profile: str, provenance: "Provenance") -> None:
    """Report short names that are set but not honoured."""
    for name in provenance.ignored:
        print(f"tatara: {name} is set but {profile} does not honour it", file=sys.stderr)


def profile_path(profile: str, env: Mapping[str, str]) -> Path:
    """Find a profile by its path, or by its name in profiles/ and profiles/recipes/.

    RECIPE in the environment selects another one where the profile lists `recipes:`.
    """
    path = _named(profile)
    if not env.get("RECIPE"):
        return path
    from workloads.plan.recipes import chosen

    recipe = chosen(path, env)
    if recipe != path:
        print(f"tatara: RECIPE={env['RECIPE']}: {recipe}", file=sys.stderr)
    return recipe


def _named(profile: str) -> Path:
    path = Path(profile)
    if path.suffix in (".yaml", ".yml") or "/" in profile:
        return path
    for folder in (Path("profiles"), Path("profiles/recipes")):
        if (folder / f"{profile}.yaml").is_file():
            return folder / f"{profile}.yaml"
    known = sorted(path.stem for path in Path("profiles").glob("**/*.yaml"))
    if not known:
        raise UserError(
            f"no profile {profile!r}: expected profiles in {Path('profiles').absolute()}, found "
            "none; run tatara in the folder of the checkout, or name a file"
        )
    raise UserError(f"no profile {profile!r} in profiles/; {did_you_mean(profile, known)}")


def no_settings(words: Sequence[str]) -> None:
    """Raise UserError for left-over arguments, where a verb takes no settings."""
    if words:
        raise UserError(f"unexpected {words[0]!r}; see --help")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


class Ticker:
    """Progress of long work on stderr, at most every few seconds; called as (done, total).

    Work that ends before the first interval prints nothing.
    """

    def __init__(self, what: str, every: float = 3.0) -> None:
        self.what = what
        self.every = every
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            print(f"tatara: {done:,} of {total:,} {self.what}", file=sys.stderr, flush=True)
