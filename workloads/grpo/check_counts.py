"""Checks predicted prompt lengths against the model's processor on a few rows.

Counting follows our own rules; with a processor that differs, training would see other prompts than
those compared with the limits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from workloads.engine.generate.encode import encode
from workloads.errors import UserError
from workloads.grpo.data.rows import Example
from workloads.grpo.data.tokens import RowTokens
from workloads.grpo.model import Processing, prompt_texts
from workloads.grpo.prompts import Question, Turns

Counted = tuple[Example, RowTokens]


def prove(
    sample: Iterable[Counted],
    processing: Processing,
    turns: Callable[[Question], Turns],
    tools: Sequence[dict[str, Any]] = (),
    switches: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Compare predicted prompt lengths with the processor's; returns how many were compared.

    Raises UserError for the first prompt that is longer or shorter than it was counted.
    """
    done = 0
    for example, counted in sample:
        texts = prompt_texts(processing, [turns(example.question)], tools, switches)
        row = encode(processing, texts, [example.open_images()])
        length = int(row["input_ids"].shape[1])
        if length != counted.prompt:
            raise UserError(
                f"{example.place}: expected a prompt as long as it was counted, {counted}, found "
                f"{length} tokens by {type(processing).__name__}; the images or the chat template "
                "of this model are not understood, choose another model"
            )
        done += 1
    return done


def sample_of(rows: Sequence[Counted]) -> list[Counted]:
    """First, middle and last row, and the extremes in text length, image size and aspect."""
    if not rows:
        return []
    seen = [row for row in rows if row[1].sizes]
    chosen = [rows[0], rows[len(rows) // 2], rows[-1], max(rows, key=lambda row: row[1].text)]
    if seen:
        chosen += [max(seen, key=lambda row: row[1].image), min(seen, key=_pixels)]
        chosen += [max(seen, key=_pixels), max(seen, key=_stretch)]
        chosen.append(max(seen, key=lambda row: len(row[1].sizes)))
    return list({row[0].place: row for row in chosen}.values())


def _pixels(row: Counted) -> int:
    return max(width * height for width, height in row[1].sizes)


def _stretch(row: Counted) -> float:
    return max(max(width / height, height / width) for width, height in row[1].sizes)


__all__ = ["prove", "sample_of"]
