"""Differences between a GPU and the CPU that fake tensors are labelled with.

Written against torch 2.13, transformers 5.17, peft 0.21 and TRL 1.16, with CUDA's kernels in mind.
The label `cuda` cannot be used: a build of torch without CUDA dies at the first backward pass.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

# transformers' names of attention without a mask: the flash kernel, by itself or under sdpa.
FLASH = "sdpa_of_full_rows"


@contextlib.contextmanager
def as_on_a_card() -> Iterator[None]:
    """Make operations save and allocate the tensors that they would on a card."""
    AttentionInterface.register(FLASH, _attention_of_a_layer)
    AttentionMaskInterface.register(FLASH, _without_mask)
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in _replacements():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _replacements() -> list[tuple[Any, str, Any]]:
    found: list[tuple[Any, str, Any]] = [
        (nn.Module, "_apply", _apply),
        (Tensor, "__deepcopy__", _deep_copy),
        (functional, "scaled_dot_product_attention", _attention),
        (functional, "dropout", _dropout),
        (functional, "layer_norm", _in_fp32(functional.layer_norm)),
        (functional, "softmax", _softmax),
    ]
    with contextlib.suppress(ImportError):
        from trl.kernels import chunked_logprob
        from trl.trainer import utils

        found += [
            (chunked_logprob, "_forward_tile", _nothing),
            (chunked_logprob, "_backward_tile", _nothing),
            # On a card it sums in fp32 without copies of what it multiplies.
            (chunked_logprob, "_addmm_fp32", _nothing),
            (utils, "_ChunkedLogProbFunction", _CompactHead),
        ]
    return found


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module._apply without torch.utils.swap_tensors, which refuses tensors that are watched."""
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in tied:
                with torch.no_grad():
                    changed = change(parameter)
                is_same = changed is parameter
                tied[parameter] = (
                    parameter if is_same else nn.Parameter(changed, parameter.requires_grad)
                )
            module._parameters[name] = tied[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    return self


def _deep_copy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy with one storage; views of torch's own copy of a fake tensor have another one."""
    if id(self) not in memo:
        copied: Tensor = torch.empty_like(self.detach())
        is_parameter = isinstance(self, nn.Parameter)
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
    found: Tensor = memo[id(self)]
    return found


class _Kernel(torch.autograd.Function):
    """Fused attention over (rows, heads, length, head size): no scores, a log-sum for each head.

    Flash: the queries' gradient is summed in fp32, those of keys and values are made for every
    query head. The memory-efficient kernel takes a mask, and keys and values of every query head.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_flash: bool) -> Tensor:
        rows, heads, length, _ = query.shape
        # Flash keeps the queries' layout; the other lays it out by token, as it is read later.
        output = torch.empty_like(query)
        if not is_flash:
            output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        padded = length if is_flash else -(-length // 32) * 32
        sums = query.new_empty(rows, heads, padded, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.is_flash = is_flash
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        _rows = torch.empty_like(sums)
        of_query = torch.empty_like(query)
        if not ctx.is_flash:
            return of_query, torch.empty_like(key), torch.empty_like(value), None
        _accumulated = torch.empty_like(query, dtype=torch.float32)
        shared = query.shape[1] // key.shape[1]
        of_key, of_value = (_for_every_head(part, shared) for part in (key, value))
        if shared > 1:
            of_key, of_value = of_key.sum(2), of_value.sum(2)
        return of_query, of_key.view_as(key), of_value.view_as(value), None


def _without_mask(*args: Any, **kwargs: Any) -> None:
    """Drop the mask: full rows need none, which transformers cannot see on fake tensors."""


def _attention_of_a_layer(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: over (rows, heads, length, head size), given back by token."""
    return _attention(query, key, value).transpose(1, 2), None


def _for_every_head(part: Tensor, shared: int) -> Tensor:
    rows, heads, *rest = part.shape
    return part.new_empty(rows, heads, shared, *rest)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        compute = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(compute), key.to(compute), value.to(compute)
    output: Tensor = _Kernel.apply(query, key, value, attn_mask is None)
    return output


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout with a mask of one byte a value; a CPU's mask has the type of the input."""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _in_fp32(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a function that CUDA's autocast computes in fp32 and the CPU's does not."""

    def wide(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return plain(input, *args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            own = [part.float() if isinstance(part, Tensor) else part for part in args]
            named = {name: part.float() if isinstance(part, Tensor) else part
                     for name, part in kwargs.items()}  # fmt: skip
            return plain(input.float(), *own, **named)

    return wide


_plain_softmax = functional.softmax


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """fp16 becomes fp32 inside CUDA's kernel, not in a copy before it."""
    if input.dtype == torch.float16 and dtype == torch.float32:
        return torch._softmax(input, -1 if dim is None else dim, True)
    return _plain_softmax(input, dim, _stacklevel, dtype)


class _CompactHead:
    """TRL's fused head, which on a card copies the hidden states that have labels."""

    @staticmethod
    def apply(hidden: Tensor, *args: Any) -> Any:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        return ChunkedLogProbFunction.apply(hidden.clone() if hidden._is_view() else hidden, *args)
