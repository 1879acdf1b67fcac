"""Combines several adapters over one base, each with a weight, into one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workloads.engine.pretrained.adapter import adapter_folder, check_same_base, load_adapter
from workloads.engine.pretrained.files import ADAPTER_CONFIG
from workloads.errors import UserError
from workloads.json_files import read_json

_COMBINED = "combined"
# Features beyond the product of two matrices, which have no weighted sum.
_MORE_THAN_LORA = ("use_dora", "modules_to_save", "bias", "lora_bias")


@dataclass(frozen=True)
class Weighted:
    """Weight of an adapter, and its folder; None for the run's own."""

    weight: float
    folder: Path | None = None


def check_combinable(adapters: Mapping[str, Weighted], base: str) -> None:
    """Raise UserError for an adapter of another base, or one that is more than plain LoRA."""
    for name, adapter in adapters.items():
        saved = _place(name, adapter)
        check_same_base(saved, base)
        own = read_json(saved / ADAPTER_CONFIG)
        for field in _MORE_THAN_LORA:
            if own.get(field) not in (None, False, "none", []):
                raise UserError(
                    f"--adapters: expected plain LoRA in {name}, found {field}={own[field]} in "
                    f"{saved}; merge that adapter into the base, and combine the others over it"
                )


def combine(
    model: nn.Module, adapters: Mapping[str, Weighted]
) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights and config of one adapter that adds the weighted sum of several.

    Exact for any ranks: peft (0.21) lays the matrices side by side, so that the rank is the sum.
    LoRA's A is (rank, inputs), its B (outputs, rank).
    Raises UserError for adapters that do not fit the model or each other.
    """
    from peft import get_peft_model_state_dict

    wrapped: Any = model
    for name, adapter in adapters.items():
        wrapped = load_adapter(wrapped, _place(name, adapter), name)
    weights = [adapter.weight for adapter in adapters.values()]
    try:
        wrapped.add_weighted_adapter(list(adapters), weights, _COMBINED, combination_type="cat")
    except ValueError as error:
        raise UserError(
            f"--adapters: expected adapters that fit together, found: {error}"
        ) from None
    state = get_peft_model_state_dict(wrapped, adapter_name=_COMBINED, save_embedding_layers=False)
    # The scales are in the matrices; rsLoRA would divide by the root of the new rank once more.
    own = replace(wrapped.peft_config[_COMBINED], use_rslora=False)
    return {name: value.contiguous() for name, value in state.items()}, own


def _place(name: str, adapter: Weighted) -> Path:
    assert adapter.folder is not None
    return adapter_folder(adapter.folder, name)
