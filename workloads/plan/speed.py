"""Floating-point operations of a trained token, and what a card can do of them."""

from collections.abc import Mapping

from workloads.config.sections import Adapter
from workloads.plan.shapes import ModelShape

# Dense bf16 peak of one card in FLOP/s, by a part of the name that NVML gives; from data sheets.
PEAK_FLOPS: Mapping[str, float] = {
    "RTX 4090": 165e12,
    "A100": 312e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
}


def mfu_flops_per_token(shape: ModelShape, seq_len: int, adapter: Adapter) -> int:
    """Useful FLOPs of one training token: 6 N + 6 L H (d_qk + d_v) s; 4 N where only LoRA trains.

    N leaves out the embedding of an untied model, which is looked up, not multiplied.
    """
    looked_up = 0 if shape.tied else shape.vocab * shape.hidden
    factor = 6 if adapter.method == "full" else 4
    attention = 6 * shape.layers * shape.heads * 2 * shape.head_dim * seq_len
    return factor * (shape.parameters - looked_up) + attention


def peak_flops(gpu_name: str) -> float | None:
    """Dense bf16 peak of a card in FLOP/s by its name; None for one that is not in the table."""
    matching = [known for known in PEAK_FLOPS if known.lower() in gpu_name.lower()]
    return PEAK_FLOPS[max(matching, key=len)] if matching else None
