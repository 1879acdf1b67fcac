"""Linear layers with 4- or 8-bit weights, quantised while the checkpoint is read.

bitsandbytes is imported only here and only when asked for.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from workloads.errors import UserError
from workloads.vla.openvla.layout import HEADS


@dataclass(frozen=True)
class Quantisation:
    """kind: "nf4" or "int8"; double: quantise the nf4 constants too; compute: the type of sums."""

    kind: str = "nf4"
    double: bool = True
    compute: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.kind not in ("nf4", "int8"):
            raise UserError(f"expected a quantisation of nf4 or int8, found {self.kind!r}")


def replace_linears(model: Any, quantisation: Quantisation) -> None:
    """Replace the linear layers by quantised ones without storage.

    `lm_head` and the OFT heads keep full precision: they are small or decide the result.
    """
    library = _library()
    kept = tuple(f"{name}." for name in HEADS)
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(kept)
        and module is not model.get_output_embeddings()
    ]
    for name, module in linears:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _layer(library, module, quantisation))
    # peft and accelerate look for these names.
    model.is_loaded_in_4bit = quantisation.kind == "nf4"
    model.is_loaded_in_8bit = quantisation.kind == "int8"


def quantised(owner: nn.Module, leaf: str, tensor: Tensor, device: torch.device) -> Any:
    """The parameter for a quantised layer's weight [out, in] on its device; None for any other."""
    if leaf != "weight" or not type(owner).__module__.startswith("bitsandbytes."):
        return None
    library = _library()
    if isinstance(owner, library.nn.Linear4bit):
        weight = owner.weight
        return library.nn.Params4bit(
            tensor.cpu(),
            requires_grad=False,
            quant_type=weight.quant_type,
            compress_statistics=weight.compress_statistics,
            quant_storage=weight.quant_storage,
            module=owner,
        ).to(device)
    return library.nn.Int8Params(tensor.cpu(), requires_grad=False, has_fp16_weights=False).to(
        device
    )


def _layer(library: ModuleType, linear: nn.Linear, quantisation: Quantisation) -> Any:
    arguments = (linear.in_features, linear.out_features, linear.bias is not None)
    if quantisation.kind == "int8":
        layer = library.nn.Linear8bitLt(*arguments, has_fp16_weights=False, device="meta")
    else:
        layer = library.nn.Linear4bit(
            *arguments,
            compute_dtype=quantisation.compute,
            compress_statistics=quantisation.double,
            quant_type="nf4",
            device="meta",
        )
    return layer.requires_grad_(False)


def _library() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            "expected bitsandbytes for a quantised base, found none; install it or train without"
        ) from error
    library: ModuleType = bitsandbytes
    return library
