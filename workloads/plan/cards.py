"""Cards by name: memory and peak FLOP/s."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from workloads.errors import UserError

_TABLE = Path(__file__).with_name("cards.json")
# Parts of a name that do not affect a card's speed: maker, brand, memory, form factor.
_IGNORED = re.compile(r"nvidia|geforce|tesla|generation|sxm\d?|hbm\d?e?|\d+gb|gb")


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

    Every word has to be known: an RTX A1000 is no A100, a laptop's or a slice of MIG is no card.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    words = [word for word in words if not _IGNORED.fullmatch(word)]
    # A card for PCIe has an entry of its own where it is slower.
    for wanted in (words, [word for word in words if word != "pcie"]):
        for card in known_cards():
            if " ".join(wanted) in card.names:
                return card
    return None


def card_for_plan(name: str) -> tuple[Card, int]:
    """The card of a user's name and its bytes; raises UserError that lists known ones.

    Where a card has several sizes the name tells which, `a100-40gb`; otherwise the smallest.
    """
    card = find_card(name)
    if card is None:
        known = ", ".join(sorted(card.name.replace(" ", "-") for card in known_cards()))
        raise UserError(f"--gpu: expected one of {known}, found {name!r}")
    size = re.search(r"(\d+) ?gb", name.lower())
    if size is None:
        return card, card.memory[0]
    wanted = int(size[1]) << 30
    return card, min(card.memory, key=lambda memory: abs(memory - wanted))


def peak_flops(gpu_name: str) -> float | None:
    """Dense bf16 peak of a card in FLOP/s by its name; None where it is unknown or has no bf16."""
    card = find_card(gpu_name)
    return card.tflops * 1e12 if card and card.has_bf16 else None
