"""Rendering of questions as prompts, in training and in the two evaluations.

The wording is R1-V's, which the published scores were measured with: training with images puts two
spaces between question and instruction, GEOQA's evaluation one, and SuperCLEVR's evaluation adds
"First". None of them sets a system prompt; a chat template may add its own.
"""

import re
from dataclasses import dataclass
from typing import Any

TRAINING = (
    "{question}  Output the thinking process in <think> </think> "
    "and final answer (number) in <answer> </answer> tags."
)
GEOQA = (
    "{question} Output the thinking process in <think> </think> "
    "and final answer (number) in <answer> </answer> tags."
)
SUPERCLEVR = (
    "{question} First output the thinking process in <think> </think> "
    "and final answer (number) in <answer> </answer> tags."
)
# The system prompt of text-only questions.
R1_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>"
)
IMAGE_MARK = "<image>"
QUESTION = "{question}"
_MARK = re.compile(r"(<image>)")
_LEADING = re.compile(r"(?:\s*<image>)+\s*")

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A row's question: its text, number of images, and earlier turns (role, text).

    `<image>` in the text says where an image stands; without it they stand before the text.
    `is_worded`: the row brings its whole prompt, to which nothing is added.
    """

    text: str
    images: int = 0
    before: tuple[tuple[str, str], ...] = ()
    is_worded: bool = False


@dataclass(frozen=True)
class Wording:
    """Templates of prompts: for questions with and without an image, and system prompts.

    Both texts hold `{question}`. `system` goes before every question that brings none of its own;
    `text_system` before those without an image where there is no `system`.
    """

    with_image: str = TRAINING
    text_only: str = QUESTION
    system: str | None = None
    text_system: str | None = R1_SYSTEM
    is_own: bool = False

    def __call__(self, question: Question) -> Turns:
        """The turns of the prompt, images as parts without content."""
        template = self.with_image if question.images else self.text_only
        if question.is_worded and not self.is_own:
            template = QUESTION
        turns: Turns = [{"role": role, "content": text} for role, text in question.before]
        if not any(turn["role"] == "system" for turn in turns):
            system = self.system
            if system is None and not question.images and not question.is_worded:
                system = self.text_system
            turns = [{"role": "system", "content": system}, *turns] if system else turns
        text = template.replace(QUESTION, question.text)
        content: Any = placed(text, question.images) if question.images else text
        return [*turns, {"role": "user", "content": content}]


def placed(text: str, images: int) -> list[dict[str, str]]:
    """The parts of a turn with `images`: at their marks, or before the text."""
    # A mark at the beginning means "before the text", on a line of its own or not.
    if leading := _LEADING.match(text):
        text = IMAGE_MARK * leading[0].count(IMAGE_MARK) + text[leading.end() :]
    pieces = _MARK.split(text)
    if len(pieces) == 1:
        return [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return [
        {"type": "image"} if piece == IMAGE_MARK else {"type": "text", "text": piece}
        for piece in pieces
        if piece
    ]


def image_turns(question: str, wording: str = TRAINING) -> Turns:
    """One user turn: an image, then `question` in one of the wordings above."""
    return Wording(wording)(Question(question, images=1))


def text_turns(question: str) -> Turns:
    """A question without an image: the system prompt, then the question as it is."""
    return Wording()(Question(question))


def in_parts(turns: Turns) -> Turns:
    """Turns in the form of processors' templates: every content is a list of parts."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn["content"], str)
        else turn
        for turn in turns
    ]
