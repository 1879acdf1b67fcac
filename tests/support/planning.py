"""Profiles of one model, and what is predicted for them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from workloads.config.merge import resolve
from workloads.plan.estimate import Breakdown, estimate

GIB = 1 << 30
OFFLINE = {"HF_HUB_OFFLINE": "1"}
LLAMA_1B = "meta-llama/Llama-3.2-1B-Instruct"
N = 1_235_814_400  # its parameters
TABLE = 128_256 * 2048
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "vocab_size": 500,
}


def profile(folder: Path, *overrides: str, model: str = LLAMA_1B) -> Any:
    path = folder / "one.yaml"
    path.write_text(f"workload: llm\nmodel: {{name: {model}}}\ndata: {{source: rows.jsonl}}\n")
    return resolve(path, {}, list(overrides))[0]


def of(folder: Path, *overrides: str, gpus: int = 1, model: str = LLAMA_1B) -> Breakdown:
    return estimate(profile(folder, *overrides, model=model), gpus, OFFLINE)


def total(breakdown: Breakdown) -> int:
    assert breakdown.total is not None
    return breakdown.total


def highest(breakdown: Breakdown, part: str) -> int:
    """The most that one part takes at any moment."""
    return max(asdict(moment.memory)[part] for moment in breakdown.moments)
