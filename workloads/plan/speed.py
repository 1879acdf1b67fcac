"""Duration of a run: FLOPs divided by a card's measured rate."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from workloads.config.sections import Adapter, Profile
from workloads.plan.cards import Card
from workloads.plan.shapes import ModelShape

_TABLE = Path(__file__).with_name("speeds.json")
# Bounds as factors on the predicted time; padded rows and slow disks are not included.
FASTEST, SLOWEST = 0.75, 1.6
# Gain of torch.compile: torchtune's 3B reached 0.627 of an A100's peak with it, 0.493 without.
_COMPILED = 1.27
# Eager attention moves about 100 bytes for each score, seen on a T4 beside sdpa at rows of 1024
# tokens and more; a card does some 200 FLOPs in the time in which it moves a byte.
_EAGER_FLOPS = 100 * 200


def mfu_flops_per_token(shape: ModelShape, seq_len: int, adapter: Adapter) -> int:
    """Useful FLOPs of one training token: 6 N + 6 L H (d_qk + d_v) s; 4 N where only LoRA trains.

    N leaves out the embedding of an untied model, which is looked up, not multiplied.
    """
    factor = 6 if adapter.method == "full" else 4
    attention = 6 * shape.layers * shape.heads * 2 * shape.head_dim * seq_len
    return factor * _multiplied(shape) + attention


def hardware_flops_per_token(shape: ModelShape, seq_len: int, is_full: bool, again: float) -> float:
    """FLOPs that a card really computes for one training token, which are fewer than MFU counts.

    again: share of the forward pass that checkpointing repeats. Causal attention sees half of a
    row; going back, a fused kernel computes its scores again: 2.5 times the forward pass.
    """
    forward = 2 * _multiplied(shape)
    attention = 2 * shape.layers * shape.heads * shape.head_dim * seq_len
    return forward * ((3 if is_full else 2) + again) + attention * (3.5 + again)


def _multiplied(shape: ModelShape) -> int:
    return shape.parameters - (0 if shape.tied else shape.vocab * shape.hidden)


@dataclass(frozen=True)
class Utilisation:
    """The share of a card's peak that a run reached, by the FLOPs that it really did."""

    source: str
    card: str
    generation: str
    method: str
    share: float
    compiled: bool = False


@cache
def published() -> tuple[Utilisation, ...]:
    """Published measurements; `speeds.json` names their sources."""
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(Utilisation(**row) for row in rows)


def expected_utilisation(
    card: Card, method: str, compiled: bool, seen: Sequence[Utilisation]
) -> tuple[float, tuple[Utilisation, ...]]:
    """The median of the rows nearest in kind, as they would be with or without torch.compile, and
    those rows.

    Nearest first: the same card and method, the same generation and method, the same generation,
    all of other generations that compute in bf16. Older cards stand apart.
    """
    is_old = not card.has_bf16
    same = [row for row in seen if row.generation == card.generation]
    choices = [
        [row for row in same if row.card == card.name and row.method == method],
        [row for row in same if row.method == method],
        same,
        [row for row in seen if (row.generation in ("turing", "volta")) == is_old],
        list(seen),
    ]
    found = next(rows for rows in choices if rows)
    change = _COMPILED if compiled else 1 / _COMPILED
    shares = [row.share * (1 if row.compiled == compiled else change) for row in found]
    return statistics.median(shares), tuple(found)


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all GPUs together, and the source."""

    tokens_per_second: float
    source: str

    def seconds(self, tokens: float) -> tuple[float, float, float]:
        """Expected, least and most."""
        expected = tokens / self.tokens_per_second
        return expected, FASTEST * expected, SLOWEST * expected


def speed_of(
    config: Profile,
    shape: ModelShape,
    card: Card,
    gpus: int,
    own: Sequence[Utilisation] = (),
) -> Speed:
    """The speed of a profile on so many of these cards.

    own: utilisation of earlier runs here; those on the same card win over published ones.
    """
    method = config.adapter.method
    here = [row for row in own if row.card == card.name]
    share, rows = expected_utilisation(card, method, config.train.compile, here or published())
    seen = config.seen_shape(shape)
    again = 1.0 if config.train.gradient_checkpointing else 0.0
    token = hardware_flops_per_token(seen, config.row_length(seen), method == "full", again)
    names = " and ".join(dict.fromkeys(row.source for row in rows))
    text = f"{share:.0%} of the card's {card.tflops:g} TFLOP/s, which {names} reached"
    moved = _eager_flops_per_token(config, seen) if config.model.attention == "eager" else 0
    return Speed(card.tflops * 1e12 * gpus / (token / share + moved), text)


def _eager_flops_per_token(config: Profile, shape: ModelShape) -> int:
    """FLOPs that a card could do in the time in which eager attention moves one token's scores."""
    return _EAGER_FLOPS * shape.layers * shape.heads * config.row_length(shape)
