"""Cards by name: memory and peak FLOP/s."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from workloads.errors import UserError, did_you_mean

Precision = Literal["bf16", "fp16", "fp32"]
_TABLE = Path(__file__).with_name("cards.json")
# Parts of a name that do not affect a card's speed: maker, brand, form factor.
_IGNORED = re.compile(r"nvidia|geforce|tesla|generation|tensor|core|gpu|sxm\d?|hbm\d?e?")
_SIZE = re.compile(r"(\d+)gb")
# Spellings without the space that a name has: 80 GB, 80G, 80GiB; RTX4090; 4070Ti, 4090D.
_SPELT = (
    (re.compile(r"(?<![a-z0-9])(\d+)[ -]?g(i?b)?\b"), r"\1gb"),
    (re.compile(r"\brtx(?=[a\d])"), "rtx "),
    (re.compile(r"(?<=\d{4})(ti|super|d)\b"), r" \1"),
)
# Sizes in names are rounded up, and ECC takes its part: an L40S of 48 GB shows 45.
_ROUNDED = 0.1


@dataclass(frozen=True)
class Card:
    """A card of the table; tflops: dense, with sums in fp32, in bf16, or in fp16 where there is no
    bf16. memory: bytes that nvidia-smi shows, smallest first."""

    name: str
    names: tuple[str, ...]
    generation: str
    memory: tuple[int, ...]
    tflops: float
    has_bf16: bool
    source: str

    def compute_type(self, wanted: Precision) -> Precision:
        """The type that it computes in where a profile wants that one; it needs as much memory."""
        return "fp16" if wanted == "bf16" and not self.has_bf16 else wanted


@cache
def known_cards() -> tuple[Card, ...]:
    """All cards of the table."""
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(
        Card(
            name=row["names"][0],
            names=tuple(row["names"]),
            generation=row["generation"],
            memory=tuple(size << 20 for size in row["memory_mib"]),
            tflops=row["bf16_tflops"] or row["fp16_tflops"],
            has_bf16=row["bf16_tflops"] is not None,
            source=row["source"],
        )
        for row in rows
    )


def find_card(name: str) -> Card | None:
    """Find a card by its name as NVML or a person writes it; None for one not in the table.

    Every word has to be known: an RTX A1000 is no A100, a laptop's or a slice of MIG is no card. So
    has a size: an A100 of 64 GB is a card of its own.
    """
    words = _words(name)
    bare = [word for word in words if not _SIZE.fullmatch(word)]
    card = _named(words) or _named(bare)
    return card if card and _size_of(card, name) else None


def _words(name: str) -> list[str]:
    spelt = name.lower()
    for pattern, meant in _SPELT:
        spelt = pattern.sub(meant, spelt)
    words = [word for word in re.split(r"[^a-z0-9]+", spelt) if word]
    return [word for word in words if not _IGNORED.fullmatch(word)]


def _named(words: list[str]) -> Card | None:
    # A card for PCIe has an entry of its own where it is slower.
    for wanted in (words, [word for word in words if word != "pcie"]):
        for card in known_cards():
            if "".join(wanted) in (name.replace(" ", "") for name in card.names):
                return card
    return None


def _size_of(card: Card, name: str) -> int | None:
    """Bytes of a card under a name: the smallest where the name has no size; None where the card
    has none of the name's size."""
    words = _words(name)
    sizes = {int(found[1]) << 30 for word in words if (found := _SIZE.fullmatch(word))}
    if not sizes or " ".join(words) in card.names:
        return card.memory[0]
    if len(sizes) > 1:
        return None
    (size,) = sizes
    nearest = min(card.memory, key=lambda memory: abs(memory - size))
    return nearest if abs(nearest - size) <= _ROUNDED * size else None


def card_for_plan(name: str) -> tuple[Card, int]:
    """The card of a user's name and its bytes; raises UserError that lists known ones.

    Where a card has several sizes the name tells which, `a100-40gb`; otherwise the smallest.
    """
    card = find_card(name)
    size = _size_of(card, name) if card else None
    if card is not None and size is not None:
        return card, size
    near = did_you_mean(name, (card.name.replace(" ", "-") for card in known_cards()))
    raise UserError(
        f"--gpu: unknown card {name!r}; {near} (for another card or size leave the size out of the "
        "name, or --gpu altogether, and give --gpu-memory GIB)"
    )


def peak_flops(gpu_name: str) -> float | None:
    """Dense bf16 peak of a card in FLOP/s by its name; None where it is unknown or has no bf16."""
    card = find_card(gpu_name)
    return card.tflops * 1e12 if card and card.has_bf16 else None
