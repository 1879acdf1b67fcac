"""Models by name: what is known of each, and what they need by method on one GPU.

`models.json` holds facts that were read (`read`), taken from a listing beside a known base
(`listed`), or are from memory (`memory`): of the last, config.json has to be looked at first, and
nothing is planned.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from workloads.config.sections import Profile
from workloads.plan.advice import changed, typed
from workloads.plan.estimate import SAFE, breakdown_of
from workloads.plan.known_shapes import in_table
from workloads.plan.model_names import model_file
from workloads.plan.shapes import ModelShape, from_fields

# Method → changes of its recipe, the better result first: what a smaller GPU may be given up for.
WAYS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {"full": ({}, {"train.master_weights": "compute"}), "lora": ({},), "qlora": ({},)}
)


@dataclass(frozen=True)
class KnownModel:
    """One model of the hub.

    access: open, gated, or None where it was not noted; prompt: how it is asked, in words;
    chat_template: our name of that where the tokenizer brings none; native: whether transformers
    builds it without code of the repository; sure: how its facts are known.
    """

    id: str
    language: str
    licence: str
    tokenizer: str
    prompt: str
    sure: str
    access: str | None = None
    chat_template: str | None = None
    native: bool = True
    note: str = ""

    @property
    def shape(self) -> ModelShape | None:
        """What can be counted of it offline; None for what is only from memory."""
        fields = in_table(self.id) if self.sure != "memory" else None
        return from_fields(fields) if fields is not None and self.native else None

    @property
    def parameters(self) -> int:
        """All of them; 0 where the shape is not known."""
        return self.shape.parameters if self.shape else 0


@dataclass(frozen=True)
class Way:
    """A method on one GPU: what is typed beside the method's recipe, and the bytes it needs."""

    method: str
    settings: tuple[str, ...]
    total: int

    def fits(self, memory: int) -> bool:
        """Whether a GPU of so many bytes holds it with the margin that plans call safe."""
        return self.total <= (1 - SAFE) * memory


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All of the file, in its order."""
    rows = model_file()["models"]
    found = []
    for row in rows:
        facts = {name: value for name, value in row.items() if name != "ids"}
        found += [KnownModel(id=name, **facts) for name in row["ids"]]
    return tuple(found)


def ways(shape: ModelShape, recipes: Mapping[str, Profile]) -> list[Way]:
    """Every method with what it needs on one GPU; recipes: method → the profile that it is."""
    found = []
    for method, recipe in recipes.items():
        for changes in WAYS[method]:
            config = recipe
            for name, value in changes.items():
                config = changed(config, name, value)
            words = tuple(f"{name}={typed(value)}" for name, value in changes.items())
            found.append(Way(method, words, breakdown_of(config, shape, "", 1).gpu.total))
    return found


def fitting(found: Iterable[Way], memory: int) -> list[Way]:
    """The best way of each method that a GPU of so many bytes holds."""
    best: dict[str, Way] = {}
    for way in found:
        if way.fits(memory):
            best.setdefault(way.method, way)
    return list(best.values())
