"""Prompts as a model's input: texts or ids by a tokenizer, texts with images by a processor.

Batches are padded on the left, so that every answer begins at the same place.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import ProcessorMixin

from workloads.engine.pretrained.files import positions
from workloads.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int]


class TextPrompts:
    """Prompts for a tokenizer: texts, which get its start token, or token ids as they are."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt]) -> None:
        self._ids = [token_ids(tokenizer, prompt) for prompt in prompts]

    def order(self) -> list[int]:
        """The longest first: lack of memory shows at once."""
        return sorted(range(len(self._ids)), key=lambda row: (-len(self._ids[row]), row))

    def check_room(self, model: nn.Module, max_new_tokens: int) -> None:
        """Raise UserError for a prompt that leaves no room for `max_new_tokens`."""
        limit = positions(model.config.to_dict())
        longest = max((len(ids) for ids in self._ids), default=0)
        if limit is not None and longest + max_new_tokens > limit:
            raise UserError(
                f"expected prompts of at most {limit - max_new_tokens} tokens, which leave room "
                f"for {max_new_tokens} new ones in the model's {limit} positions, found {longest}; "
                "ask with fewer examples or fewer new tokens"
            )

    def batch(self, rows: Sequence[int], pad_id: int, model: nn.Module) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask of shape (rows, longest), on the model's device."""
        device = next(model.parameters()).device
        ids = [self._ids[row] for row in rows]
        width = max(len(row) for row in ids)
        padded = [[pad_id] * (width - len(row)) + row for row in ids]
        masks = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        return {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(masks, device=device),
        }


class ImagePrompts:
    """Texts by a chat template for a processor, each with its images, if any."""

    def __init__(
        self, processor: ProcessorMixin, texts: Sequence[str], images: "Sequence[Sequence[Image]]"
    ) -> None:
        self._processor, self._texts = processor, texts
        self._images = images or [()] * len(texts)

    def order(self) -> list[int]:
        """In the given order: lengths are known only when images are read."""
        return list(range(len(self._texts)))

    def check_room(self, model: nn.Module, max_new_tokens: int) -> None:
        """No check: lengths are known only when images are read."""

    def batch(self, rows: Sequence[int], pad_id: int, model: nn.Module) -> dict[str, torch.Tensor]:
        """The processor's output for the rows, on the model's device, pixels in its type.

        input_ids and attention_mask are (rows, tokens), padded on the left; pixel_values as the
        processor has them.
        """
        texts, images = [self._texts[row] for row in rows], [self._images[row] for row in rows]
        inputs = encode(self._processor, texts, images).to(next(model.parameters()).device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
        return dict(inputs)


def encode(
    speaker: "PreTrainedTokenizerBase | ProcessorMixin",
    texts: Sequence[str],
    images: "Sequence[Sequence[Image]]" = (),
) -> Any:
    """Texts that a chat template has written, and the images of each, as tensors by name."""
    arguments: dict[str, Any] = {"text": list(texts)}
    given = [image for row in images for image in row]
    if given and isinstance(speaker, ProcessorMixin):
        arguments["images"] = given
    return speaker(
        **arguments,
        padding=True,
        padding_side="left",
        add_special_tokens=lacks_beginning(speaker, texts[0]),
        return_tensors="pt",
    )


def lacks_beginning(speaker: Any, text: str) -> bool:
    """Whether a chat template's prompt needs the start token put before it.

    As in TRL: a tokenizer takes such a text as it is, a processor adds a missing start token.
    """
    begin = getattr(speaker, "tokenizer", speaker).bos_token
    is_whole = bool(begin) and text.startswith(str(begin))
    return isinstance(speaker, ProcessorMixin) and not is_whole


def token_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """A prompt's token ids; a text without a start token gets the tokenizer's.

    Raises UserError for an empty prompt where there is no start token either.
    """
    if not isinstance(prompt, str):
        found = list(prompt)
    else:
        # A text made by a chat template has the start token already.
        has_start = bool(tokenizer.bos_token) and prompt.startswith(str(tokenizer.bos_token))
        found = list(tokenizer(prompt, add_special_tokens=not has_start)["input_ids"])
    if not found and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    if not found:
        raise UserError("expected a prompt, found an empty one and no start token to begin with")
    return found
