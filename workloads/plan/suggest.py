"""The ways to train a profile that fit given cards, fastest first, as settings to type."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads import device
from workloads.config.sections import Profile
from workloads.errors import UserError
from workloads.plan.advice import changed, is_valid, typed
from workloads.plan.cards import Card, find_card
from workloads.plan.estimate import SAFE, breakdown_of, estimate, gib
from workloads.plan.shapes import ModelShape
from workloads.plan.speed import Utilisation, speed_of

_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
# Tokens of a micro-batch at which a card reaches half of its speed: kernels have to be started.
_HALF_BUSY = 512
_METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Suggestion:
    """settings: what to type, nothing where the profile has it; seconds: of a million tokens."""

    settings: tuple[str, ...]
    config: Profile
    total: int
    spare: float
    seconds: float

    @property
    def method(self) -> str:
        return self.config.adapter.method


def suggestions(
    config: Profile,
    shape: ModelShape,
    card: Card,
    memory: int,
    gpus: int,
    own: Sequence[Utilisation] = (),
) -> list[Suggestion]:
    """Every sensible combination that fits with a margin, fastest first.

    card, memory: of each of `gpus` GPUs of a node. The global batch stays as it is.
    """
    found = []
    for changes in _combinations(config, shape, gpus):
        made = _with(config, changes)
        breakdown = breakdown_of(made, shape, "", gpus)
        total = breakdown.need(memory) or 0
        spare = 1 - total / memory
        if spare < SAFE or not is_valid(made):
            continue
        speed = speed_of(made, shape, card, breakdown.world_size, own)
        busy = breakdown.tokens / (breakdown.tokens + _HALF_BUSY)
        seconds = 1e6 / (speed.tokens_per_second * busy)
        words = tuple(f"{name}={typed(value)}" for name, value in changes.items())
        found.append(Suggestion(words, made, total, spare, seconds))
    return sorted(found, key=lambda each: (round(each.seconds, 3), len(each.settings)))


def fastest_by_method(found: Sequence[Suggestion], most: int = 3) -> list[Suggestion]:
    """The fastest few of every method, fastest first."""
    kept = [
        suggestion
        for method in _METHODS
        for suggestion in [each for each in found if each.method == method][:most]
    ]
    return sorted(kept, key=lambda suggestion: suggestion.seconds)


def automatic(config: Profile, env: Mapping[str, str]) -> Suggestion | None:
    """The fastest way to train a profile on the GPUs that are here, where it is not safe as it is.

    With the profile's own method where that fits at all. None where nothing has to be changed, or
    where GPUs or the model's shape are unknown. Raises UserError where nothing fits.
    """
    gpus = device.gpus(env)
    card = find_card(gpus[0].name) if gpus else None
    breakdown = estimate(config, len(gpus) or None, env)
    if card is None or breakdown.shape is None:
        return None
    memory = min(gpu.total for gpu in gpus)
    if (breakdown.need(memory) or 0) <= (1 - SAFE) * memory:
        return None
    found = suggestions(config, breakdown.shape, card, memory, len(gpus))
    if not found:
        raise UserError(
            f"RECIPE=auto: expected settings that fit a GPU of {gib(memory)}, found none; take a "
            "larger GPU or a smaller model"
        )
    own = [suggestion for suggestion in found if suggestion.method == config.adapter.method]
    return (own or found)[0]


def suggestion_lines(found: Sequence[Suggestion], memory: int) -> list[str]:
    """For people: settings to type with memory and time, the fastest marked."""
    if not found:
        return [f"nothing fits in a GPU of {gib(memory)} with {SAFE:.0%} to spare"]
    lines = []
    for suggestion in found:
        words = " ".join(suggestion.settings) or "(as the profile is)"
        mark = "fastest" if suggestion is found[0] else suggestion.method
        lines.append(
            f"{mark:8} {gib(suggestion.total):>9} of {gib(memory)}, {suggestion.spare:.0%} to "
            f"spare, {suggestion.seconds:.0f} s a million tokens: {words}"
        )
    return lines


def _combinations(config: Profile, shape: ModelShape, gpus: int) -> Iterator[dict[str, Any]]:
    """Changes of a profile: method, checkpointing, micro-batch, strategy, optimizer."""
    world = gpus * config.parallel.nodes
    whole = config.train.global_batch_size or config.train.per_device_batch_size * world
    targets = {} if shape.adapted(config.adapter.targets) else {"adapter.targets": ("all-linear",)}
    for method in _METHODS:
        optimizers = ("adamw", "adamw_8bit") if method == "full" else (config.optim.optimizer,)
        for strategy in _strategies(config, method, world):
            for optimizer in optimizers:
                for checkpointing in (False, True):
                    for size in _MICRO_BATCHES:
                        if whole % (size * world):
                            continue
                        wanted: dict[str, Any] = {
                            "adapter.method": method,
                            "parallel.strategy": strategy,
                            "optim.optimizer": optimizer,
                            "train.gradient_checkpointing": checkpointing,
                            "train.per_device_batch_size": size,
                        }
                        wanted |= {} if method == "full" else targets
                        if size != config.train.per_device_batch_size:
                            wanted["train.global_batch_size"] = whole
                        yield {
                            name: value
                            for name, value in wanted.items()
                            if _value(config, name) != value
                        }


def _strategies(config: Profile, method: str, world: int) -> tuple[str, ...]:
    if world == 1:
        return ("auto",)
    is_int8 = method == "qlora" and config.adapter.quantisation == "int8"
    return ("ddp",) if method == "lora" or is_int8 else ("ddp", "fsdp2")


def _value(config: Profile, name: str) -> Any:
    section, setting = name.split(".")
    return dict(dict(config)[section])[setting]


def _with(config: Profile, changes: dict[str, Any]) -> Profile:
    for name, value in changes.items():
        config = changed(config, name, value)
    return config
