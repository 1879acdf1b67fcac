"""The ways to train a profile that fit given cards, fastest first, as settings to type."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from workloads import device
from workloads.config.sections import Profile
from workloads.errors import UserError
from workloads.plan.advice import changed, is_valid, typed
from workloads.plan.cards import Card, find_card
from workloads.plan.duration import span
from workloads.plan.estimate import SAFE, breakdown_of, estimate, gib, verdict
from workloads.plan.row_lengths import RowLengths
from workloads.plan.shapes import ModelShape
from workloads.plan.speed import Speed, Utilisation, speed_of

_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
# Tokens of a micro-batch at which a card reaches half of its speed: kernels have to be started.
_HALF_BUSY = 512
_METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Suggestion:
    """settings: to type, empty for the profile as it is; seconds: for a million tokens of the
    dataset, without padding where row lengths are known; reason: of the choice."""

    settings: tuple[str, ...]
    config: Profile
    total: int
    spare: float
    seconds: float
    reason: str = ""

    @property
    def names(self) -> set[str]:
        """The settings that it changes."""
        return {word.partition("=")[0] for word in self.settings}

    @property
    def method(self) -> str:
        return self.config.adapter.method

    @property
    def facts(self) -> dict[str, Any]:
        """For JSON: bytes of a GPU, seconds for a million tokens."""
        return {
            "settings": list(self.settings),
            "method": self.method,
            "total": self.total,
            "spare": self.spare,
            "seconds_a_million_tokens": self.seconds,
        }


def suggestions(
    config: Profile,
    shape: ModelShape,
    card: Card,
    memory: int,
    gpus: int,
    own: Sequence[Utilisation] = (),
    lengths: RowLengths | None = None,
) -> list[Suggestion]:
    """Every sensible combination that fits with a margin, fastest first.

    card, memory: of each of `gpus` GPUs of a node. The global batch stays as it is: packed, it
    holds about as many rows. lengths: of the dataset's rows; unknown, packing is not tried.
    """
    found = []
    for changes in _combinations(config, shape, card, gpus, lengths):
        made = config
        for name, value in changes.items():
            made = changed(made, name, value)
        breakdown = breakdown_of(made, shape, "", gpus)
        total = breakdown.need(memory) or 0
        spare = 1 - total / memory
        if spare < SAFE or breakdown.starves_engine(memory) or not is_valid(made):
            continue
        speed = speed_of(made, shape, card, breakdown.world_size, own)
        seconds = _seconds(made, shape, speed, lengths)
        words = tuple(f"{name}={typed(value)}" for name, value in changes.items())
        found.append(Suggestion(words, made, total, spare, seconds))
    return sorted(found, key=lambda each: (round(each.seconds, 3), len(each.settings)))


def _seconds(config: Profile, shape: ModelShape, speed: Speed, lengths: RowLengths | None) -> float:
    """Seconds for a million tokens of the dataset, with their padding."""
    rows, length = config.train.per_device_batch_size, config.row_length(config.seen_shape(shape))
    row, own = float(length), float(length)
    if lengths is not None and not config.packs:
        row, own = lengths.padded(rows, length), min(lengths.mean, length)
    busy = rows * row / (rows * row + _HALF_BUSY)
    return 1e6 * row / own / (speed.tokens_per_second * busy)


def fastest_by_method(found: Sequence[Suggestion], most: int = 3) -> list[Suggestion]:
    """The fastest few of every method, fastest first."""
    kept = [
        suggestion
        for method in _METHODS
        for suggestion in [each for each in found if each.method == method][:most]
    ]
    return sorted(kept, key=lambda suggestion: suggestion.seconds)


def automatic(
    config: Profile, env: Mapping[str, str], pinned: Collection[str] = ()
) -> Suggestion | None:
    """The fastest safe way to train a profile on the GPUs here, if its own settings are not safe.

    With the profile's own method where that fits at all; settings in `pinned` stay. None where
    nothing has to be changed, or where GPUs or the model's shape are unknown. Raises UserError
    where nothing fits.
    """
    gpus = device.gpus(env)
    card = find_card(gpus[0].name) if gpus else None
    breakdown = estimate(config, len(gpus) or None, env)
    if card is None or breakdown.shape is None:
        return None
    memory = min(gpu.total for gpu in gpus)
    starves = breakdown.starves_engine(memory)
    if (breakdown.need(memory) or 0) <= (1 - SAFE) * memory and not starves:
        return None
    found = [
        suggestion
        for suggestion in suggestions(config, breakdown.shape, card, memory, len(gpus))
        if not suggestion.names & set(pinned)
    ]
    if not found:
        stay = f" beside {', '.join(sorted(pinned))}, which stay" if pinned else ""
        raise UserError(
            f"RECIPE=auto: expected settings that fit a GPU of {gib(memory)}, found none{stay}; "
            "take a larger GPU or a smaller model"
        )
    own = [suggestion for suggestion in found if suggestion.method == config.adapter.method]
    best = (own or found)[0]
    reason = (
        f"{' '.join(best.settings)}: {gib(best.total)} of {gib(memory)} with "
        f"{best.spare:.0%} to spare, the fastest of {len(own or found)} ways that fit"
        f"{'' if own else f' (adapter.method={config.adapter.method} fits in none)'}; "
        f"the profile as it is: {verdict(breakdown, memory)}"
    )
    return replace(best, reason=reason)


def suggestion_lines(
    found: Sequence[Suggestion], memory: int, hour: float | None = None
) -> list[str]:
    """For people: settings to type with memory and time, the fastest marked.

    hour: dollars for an hour of all GPUs.
    """
    if not found:
        return [f"nothing fits in a GPU of {gib(memory)} with {SAFE:.0%} to spare"]
    lines = []
    for suggestion in found:
        words = " ".join(suggestion.settings) or "(as the profile is)"
        mark = "fastest" if suggestion is found[0] else suggestion.method
        price = f" and ${hour * suggestion.seconds / 3600:.2g}" if hour else ""
        lines.append(
            f"{mark:8} {gib(suggestion.total):>9} of {gib(memory)}, {suggestion.spare:.0%} to "
            f"spare, {span(suggestion.seconds)}{price} a million tokens: {words}"
        )
    return lines


def _combinations(
    config: Profile, shape: ModelShape, card: Card, gpus: int, lengths: RowLengths | None
) -> Iterator[dict[str, Any]]:
    """Changes of a profile: method, strategy, optimizer, attention, packing, checkpointing,
    micro-batch; the compute type where the card lacks it."""
    world = config.ranks_per_node(gpus) * config.parallel.nodes
    compute = card.compute_type(config.train.precision)
    targets = {} if shape.adapted(config.adapter.targets) else {"adapter.targets": ("all-linear",)}
    for method in _METHODS:
        choices: dict[str, tuple[Any, ...]] = {
            "parallel.strategy": _strategies(config, method, world),
            "optim.optimizer": ("adamw", "adamw_8bit") if method == "full"
            else (config.optim.optimizer,),
            "model.attention": _attentions(config),
            "data.packing": _packings(config, lengths),
            "train.precision": (compute,),
            "train.master_weights": ("fp32",) if method == "full" and compute == "fp16"
            else (config.train.master_weights,),
            "train.gradient_checkpointing": (False, True),
            "train.per_device_batch_size": _MICRO_BATCHES,
        }  # fmt: skip
        for values in product(*choices.values()):
            wanted: dict[str, Any] = {"adapter.method": method}
            wanted |= dict(zip(choices, values, strict=True))
            whole = _global_batch(config, shape, world, wanted["data.packing"], lengths)
            if whole % (wanted["train.per_device_batch_size"] * world):
                continue
            if whole != _samples_a_step(config, world) or _changes(
                config, wanted, "train.per_device_batch_size"
            ):
                wanted["train.global_batch_size"] = whole
            if config.packs is None:
                del wanted["data.packing"]
            wanted |= {} if method == "full" else targets
            yield {name: value for name, value in wanted.items() if _changes(config, wanted, name)}


def _attentions(config: Profile) -> tuple[str, ...]:
    """Attentions to try; eager, the slowest and largest, only if the profile has it."""
    return ("eager", "auto") if config.model.attention == "eager" else (config.model.attention,)


def _packings(config: Profile, lengths: RowLengths | None) -> tuple[bool | None, ...]:
    return (config.packs,) if config.packs is None or lengths is None else (False, True)


def _samples_a_step(config: Profile, world: int) -> int:
    return config.train.global_batch_size or config.train.per_device_batch_size * world


def _global_batch(
    config: Profile, shape: ModelShape, world: int, packs: bool | None, lengths: RowLengths | None
) -> int:
    """Samples of a step; if packing changes, as many as hold about the same number of rows."""
    whole = _samples_a_step(config, world)
    if packs == config.packs or lengths is None:
        return whole
    rows = lengths.rows_of(config.row_length(config.seen_shape(shape)))
    return max(1, round((whole / rows if packs else whole * rows) / world)) * world


def _strategies(config: Profile, method: str, world: int) -> tuple[str, ...]:
    if world == 1:
        return ("auto",)
    return ("ddp",) if method == "lora" else ("ddp", "fsdp2")


def _changes(config: Profile, wanted: Mapping[str, Any], name: str) -> bool:
    section, setting = name.split(".")
    return bool(dict(dict(config)[section])[setting] != wanted[name])
