"""Linear layers as bitsandbytes holds them, in shapes alone."""

from typing import Any

import torch
from torch import Tensor, nn

from workloads.config.sections import Adapter

_NF4_BLOCK, _DOUBLE_BLOCK = 64, 256


class _Multiplied(torch.autograd.Function):
    """The weight is dequantised for the product, and again for the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: "QuantisedLinear") -> Tensor:
        ctx.layer = layer
        return inputs @ layer.dequantised(inputs.dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


class _MultipliedInInt8(torch.autograd.Function):
    """The input is quantised for the product, the weight dequantised for the input's gradient.

    bitsandbytes (0.50) keeps the input as an attribute of the node, which lives as long as the
    loss: checkpointing, which drops saved tensors, does not see it.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: "QuantisedLinear") -> Tensor:
        ctx.layer, ctx.inputs = layer, inputs
        _rounded = torch.empty_like(inputs, dtype=torch.int8)
        outputs = inputs.shape[:-1] + (layer.out_features,)
        _sums = inputs.new_empty(outputs, dtype=torch.int32)
        return inputs.new_empty(outputs, dtype=torch.float16).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


class QuantisedLinear(nn.Linear):
    """A layer that peft treats as linear, with half a byte or one byte a weight, and scales."""

    # bitsandbytes' adapters leave an input's type to autocast.
    cast_input_dtype_enabled = False

    def __init__(self, linear: nn.Linear, adapter: Adapter, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute, count = compute, linear.in_features * linear.out_features
        self.is_nf4 = is_nf4 = adapter.quantisation == "nf4"
        packed = torch.empty(-(-count // 2) if is_nf4 else count, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        blocks = -(-count // _NF4_BLOCK) if is_nf4 else linear.out_features
        is_double = is_nf4 and adapter.double_quantisation
        kind = torch.uint8 if is_double else torch.float32
        self.register_buffer("scales", torch.empty(blocks, dtype=kind))
        second = -(-blocks // _DOUBLE_BLOCK) if is_double else 0
        self.register_buffer("second", torch.empty(second, dtype=torch.float32))
        self.bias = linear.bias

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight, (outputs, inputs): made anew at each call, as bitsandbytes makes it."""
        return self.weight.new_empty(self.out_features, self.in_features, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """From (..., inputs) to (..., outputs), in the type of the input."""
        if self.is_nf4:
            product: Tensor = _Multiplied.apply(input.to(self.compute), self)
        else:
            product = _MultipliedInInt8.apply(input, self)
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        return product.to(input.dtype)


def quantise(model: nn.Module, adapter: Adapter, compute: torch.dtype, kept: nn.Module) -> None:
    """Replace all linear layers except `kept`, the head."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not kept:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, QuantisedLinear(module, adapter, compute))
