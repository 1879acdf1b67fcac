"""Tests on the model itself whether it keeps the samples of a packed row apart."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from workloads.errors import UserError
from workloads.llm.data.collate import Collate

_LENGTH = 8  # tokens of each of two samples
# Shares of the largest logit: experts and 8-bit matrices may round differently beside other tokens,
# and 16-bit numbers round more.
_ALIKE, _ALIKE_IN_HALF = 5e-5, 2e-2


def refuse_mixing(model: PreTrainedModel) -> None:
    """Raise UserError where a sample of a packed row changes the logits of the next one.

    Restarting position ids keep samples apart only where the attention mask is made from them. Some
    models build it without them, and recurrent layers have none.
    """
    name = type(model).__name__
    try:
        first, other = _logits_behind(model, 1), _logits_behind(model, 2)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data.packing=true: {name} does not take packed rows ({str(error).splitlines()[0]}); "
            "set data.packing=false"
        ) from error
    alike = _ALIKE if model.dtype == torch.float32 else _ALIKE_IN_HALF
    if not bool((first - other).abs().max() <= alike * first.abs().max()):
        raise UserError(
            f"data.packing=true: expected samples of a row that do not see each other, found that "
            f"{name} mixes them; set data.packing=false"
        )


def _logits_behind(model: PreTrainedModel, token: int) -> torch.Tensor:
    """Logits (_LENGTH, vocabulary) of a fixed sample after another one of `token`s."""
    second = [3 + place % 5 for place in range(_LENGTH)]
    row = {
        "input_ids": [token] * _LENGTH + second,
        "labels": [token] * _LENGTH + second,
        "seq_lengths": [_LENGTH, _LENGTH],
        "row_ids": [0, 1],
    }
    batch = Collate(0)([row])
    tensors = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in ("labels", "row_ids", "tokens")
    }
    with _asked(model), torch.no_grad():
        logits: torch.Tensor = model(**tensors, use_cache=False).logits
    return logits[0, _LENGTH:].float().cpu()


@contextmanager
def _asked(model: PreTrainedModel) -> Iterator[None]:
    """Context: evaluation mode, with an attention that works on the host."""
    training, own = model.training, model.config._attn_implementation
    needs_gpu = "flash" in str(own) and model.device.type == "cpu"
    model.eval()
    if needs_gpu:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.train(training)
        if needs_gpu:
            model.set_attn_implementation(own)


__all__ = ["refuse_mixing"]
