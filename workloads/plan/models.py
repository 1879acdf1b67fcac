"""Models by name: facts of each, and their memory by method on one GPU.

`models.json` holds facts that were read (`read`), come from a listing beside a known base
(`listed`), or are from memory (`memory`): for the last, config.json has to be read first, and
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

# Method → changes of its recipe that need less memory, the best result first.
WAYS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {"full": ({}, {"train.master_weights": "compute"}), "lora": ({},), "qlora": ({},)}
)


@dataclass(frozen=True)
class KnownModel:
    """One model of the hub.

    access: open, gated, or None if unknown; prompt: its prompt format as text; chat_template: our
    name of that format, if the tokenizer has no template; native: whether transformers
    builds it without code of the repository; sure: the source of its facts.
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
        """Its shape, found offline; None for a model known only from memory."""
        fields = in_table(self.id) if self.sure != "memory" else None
        return from_fields(fields) if fields is not None and self.native else None

    @property
    def parameters(self) -> int:
        """Number of all parameters; 0 for an unknown shape."""
        return self.shape.parameters if self.shape else 0


@dataclass(frozen=True)
class Way:
    """A method on one GPU: settings besides the method's recipe, and the bytes it needs."""

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
    """Every method with its memory on one GPU; recipes: method → its profile."""
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
