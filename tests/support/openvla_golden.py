"""Where the recorded OpenVLA data lies, and the tiny models put together from it."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(
    os.environ.get(
        "TATARA_GOLDEN_OPENVLA", Path(__file__).resolve().parents[1] / "golden" / "openvla"
    )
)
VARIANTS = sorted(file.parent.name for file in ROOT.glob("*/forward.json"))
TRIMMED = "trimmed.safetensors"
TABLE = "language_model.model.embed_tokens.weight"


@cache
def json_of(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


@cache
def tensors_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / name)


def complete_model(variant: str, folder: Path) -> Path:
    """A complete checkpoint folder for a variant: the recorded one, or one put together."""
    source = ROOT / variant
    if not (source / TRIMMED).is_file():
        return source
    target = folder / variant
    target.mkdir()
    shutil.copy(source / "config.json", target)
    state = load_file(source / TRIMMED)
    rows, ids = state.pop(f"{TABLE}::rows"), state.pop(f"{TABLE}::ids")
    vocabulary = len(state["language_model.lm_head.weight"])
    state[TABLE] = torch.zeros(vocabulary, rows.shape[1], dtype=rows.dtype)
    state[TABLE][ids.long()] = rows
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def inputs_of(variant: str) -> dict[str, torch.Tensor]:
    data = tensors_of(f"{variant}/forward.safetensors")
    return {name: data[name] for name in ("pixel_values", "input_ids", "attention_mask", "labels")}


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())
