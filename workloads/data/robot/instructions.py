"""Instructions by step: recorded ones, the options' text, or a default."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from workloads.data.robot.options import Options
from workloads.errors import UserError

DEFAULT_INSTRUCTION = "manipulate the object"
Origin = Literal["recorded", "option", "default"]


class Instruction(NamedTuple):
    """The text of the first step, those of all steps where they differ, and their origin."""

    text: str
    steps: tuple[str, ...] | None
    origin: Origin


def instruction_of(
    texts: Sequence[str], which: np.ndarray | None, options: Options, numbers: bool = False
) -> Instruction:
    """The instruction of an episode.

    texts: those that were recorded, which int [T]: the text of each step (None: the first that
    says something counts for all). A step without a text has that of the step before it, the
    first ones that of the first text. numbers: texts are numbers, which
    `options.instruction_map` has to translate; UserError where it does not.
    """
    known = [_mapped(text, options.instruction_map, numbers) for text in texts]
    spoken = np.array([bool(text.strip()) for text in known], bool)
    if which is None:
        which = np.flatnonzero(spoken)[:1]
    recorded = spoken[which] if len(which) else np.empty(0, bool)
    if not recorded.any():
        chosen = (options.instruction or "").strip()
        return Instruction(chosen or DEFAULT_INSTRUCTION, None, "option" if chosen else "default")
    latest = np.maximum.accumulate(np.where(recorded, np.arange(len(which)), recorded.argmax()))
    steps = tuple(known[number] for number in which[latest].tolist())
    return Instruction(steps[0], steps if len(set(steps)) > 1 else None, "recorded")


def _mapped(text: str, mapping: Mapping[str, str], numbers: bool) -> str:
    if numbers and text not in mapping:
        known = ", ".join(mapping) or "none"
        raise UserError(
            f"data.instruction_map: expected a text for {text!r}, found texts for {known}; "
            "the feature named by data.instruction_key holds numbers"
        )
    return mapping.get(text, text)


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts in order of appearance, and for each of `texts` its number, int32 [T]."""
    numbers: dict[str, int] = {}
    which = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), np.array(which, np.int32)


def decode_instruction(raw: bytes) -> str | None:
    """UTF-8 to text, None where it is none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
