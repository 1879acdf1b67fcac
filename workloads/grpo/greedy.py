"""Greedy answers of a language or vision-language model to conversations, batches padded left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from workloads.grpo.model import Processing, lacks_beginning, tokenizer_of
from workloads.grpo.prompts import Turns, in_parts


@dataclass(frozen=True)
class Asked:
    """A conversation for the chat template, and the images in it, in their order."""

    turns: Turns
    images: Sequence[Image.Image] = ()


def answers(
    model: PreTrainedModel, processing: Processing, asked: Sequence[Asked], max_new_tokens: int
) -> list[str]:
    """One text for each, without special tokens; a batch that does not fit the GPU is halved.

    A repetition penalty of the model's own stays, as in the published scores.
    """
    try:
        return _batch(model, processing, asked, max_new_tokens)
    except torch.OutOfMemoryError:
        if len(asked) == 1:
            raise
    # Outside of the handler: until it has ended, the error holds the tensors.
    torch.cuda.empty_cache()
    middle = len(asked) // 2
    parts = (asked[:middle], asked[middle:])
    return [text for part in parts for text in answers(model, processing, part, max_new_tokens)]


def prompt_texts(processing: Processing, turns: Sequence[Turns]) -> list[str]:
    """The conversations by the model's own chat template, up to where the answer begins.

    A processor is given parts even of a text, as TRL gives them to it.
    """
    if isinstance(processing, ProcessorMixin):
        turns = [in_parts(one) for one in turns]
    return [
        str(processing.apply_chat_template(one, tokenize=False, add_generation_prompt=True))
        for one in turns
    ]


def encoded(processing: Processing, asked: Sequence[Asked]) -> Any:
    """Conversations as the model takes them: tensors by name, rows padded on the left."""
    texts = prompt_texts(processing, [one.turns for one in asked])
    arguments: dict[str, Any] = {"text": texts}
    images = [image for one in asked for image in one.images]
    if images and isinstance(processing, ProcessorMixin):
        arguments["images"] = images
    return processing(
        **arguments,
        padding=True,
        padding_side="left",
        add_special_tokens=lacks_beginning(processing, texts[0]),
        return_tensors="pt",
    )


def _batch(
    model: PreTrainedModel, processing: Processing, asked: Sequence[Asked], max_new_tokens: int
) -> list[str]:
    inputs = encoded(processing, asked).to(model.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        result = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer_of(processing).pad_token_id,
        )
    new = result[:, inputs["input_ids"].shape[1] :]
    decoded: list[str] = processing.batch_decode(
        new, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return decoded
