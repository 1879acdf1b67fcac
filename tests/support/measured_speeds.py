"""Speeds that other people measured, as shares of a card's peak."""

import csv
from pathlib import Path
from typing import Any

from workloads.plan.cards import find_card
from workloads.plan.shapes import ModelShape, from_fields
from workloads.plan.speed import hardware_flops_per_token

FILE = Path(__file__).resolve().parents[1] / "golden/memory/speed.csv"
# layers, hidden, heads, kv heads, intermediate, vocabulary, tied
SHAPES = {
    "MPT-1B": (24, 2048, 16, 16, 8192, 50368, True),
    "MPT-3B": (32, 2560, 20, 20, 10240, 50368, True),
    "MPT-7B": (32, 4096, 32, 32, 16384, 50368, True),
    "MPT-13B": (40, 5120, 40, 40, 20480, 50368, True),
    "MPT-30B": (48, 7168, 64, 64, 28672, 50368, True),
    "Llama-3.1-8B": (32, 4096, 32, 8, 14336, 128256, False),
    "Llama-3.2-3B": (28, 3072, 24, 8, 8192, 128256, True),
    "Llama-2-7B": (32, 4096, 32, 32, 11008, 32000, False),
    "Qwen2.5-7B": (28, 3584, 28, 4, 18944, 152064, False),
    "Qwen2.5-1.5B": (28, 1536, 12, 2, 8960, 151936, True),
}
# A card named A6000 that was faster than an A6000 can be.
NAMED = {"named A6000": "RTX 6000 Ada", "H100 96GB": "H100"}
NAMES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")


def shape_of(model: str) -> ModelShape:
    """MPT's MLP has two matrices, as GPT-NeoX's has."""
    layers, hidden, heads, kv_heads, middle, vocab, tied = SHAPES[model]
    numbers = dict(zip(NAMES, (layers, hidden, heads, kv_heads), strict=True))
    sizes = {"intermediate_size": middle, "vocab_size": vocab, "tie_word_embeddings": tied}
    family = "gpt_neox" if model.startswith("MPT") else "llama"
    return from_fields({"model_type": family, **numbers, **sizes})


def tokens_per_second(row: dict[str, str]) -> float:
    return float(row["tokens_per_s_per_gpu"])


def flops_per_token(row: dict[str, str]) -> float:
    kind = row["gradient_checkpointing"]
    again = 1.0 if kind.startswith("true") else 0.3 if kind == "selective" else 0.0
    is_full = row["method"].startswith("full")
    shape = shape_of(row["model"])
    return hardware_flops_per_token(shape, int(row["tokens_per_row"]), is_full, again)


def rows() -> list[dict[str, str]]:
    """Those whose card is known and whose rows were full."""
    with FILE.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if row["peak_tflops_used"]]


def utilisations() -> list[dict[str, Any]]:
    found = []
    for row in rows():
        card = find_card(NAMED.get(row["gpu"], row["gpu"]))
        assert card is not None
        flops = tokens_per_second(row) * flops_per_token(row)
        found.append(
            {
                "source": row["source"].split(",")[0].split(" ")[0].rpartition("/")[2],
                "card": card.name,
                "generation": card.generation,
                "method": row["method"].split(" ")[0].rstrip(","),
                "share": round(flops / (card.tflops * 1e12), 3),
                "compiled": row["compiled"] == "true",
            }
        )
    return found
