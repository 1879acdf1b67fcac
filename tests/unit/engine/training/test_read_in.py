"""Private methods of a library are overridden only where the version they were read in stands."""

import importlib
import sys
from importlib.metadata import version
from types import ModuleType

import pytest
from transformers import Trainer

pytestmark = pytest.mark.unit
MODULES = (
    "workloads.engine.training.trainer",
    "workloads.grpo.sft",
    "workloads.grpo.trl_hooks",
    "workloads.llm.train",
    "workloads.vla.trainer",
)


def private_overrides(module: ModuleType) -> list[str]:
    """Private methods in a module's trainers that a class of a library has too."""
    return [
        f"{trainer.__name__}.{name}"
        for trainer in vars(module).values()
        if isinstance(trainer, type)
        and issubclass(trainer, Trainer)
        and trainer.__module__ == module.__name__
        for name in vars(trainer)
        if name.startswith("_") and not name.startswith("__")
        if any(
            name in vars(base)
            for base in trainer.__mro__[1:]
            if base.__module__.partition(".")[0] in ("transformers", "trl")
        )
    ]


@pytest.mark.parametrize("name", MODULES)
def test_what_is_overridden_was_read_in_the_installed_version(name: str) -> None:
    """A library of another minor version: read the methods again, then change READ_IN."""
    module = importlib.import_module(name)
    read_in = vars(module).get("READ_IN", {})
    installed = {library: version(library).rsplit(".", 1)[0] for library in read_in}
    assert dict(read_in) == installed
    if found := private_overrides(module):
        assert read_in, f"{name} overrides {found} and names no version"


def test_the_overrides_of_grpo_are_seen() -> None:
    """The look itself works, and no trainer is left out of the list."""
    module = importlib.import_module("workloads.grpo.trl_hooks")
    assert "GrpoTrainer._calculate_rewards" in private_overrides(module)
    known = [loaded for key, loaded in sys.modules.items() if key.startswith("workloads.")]
    assert {kind.__name__ for kind in known if private_overrides(kind)} <= set(MODULES)
