"""How a question is put to a model, in training and in the two evaluations.

The wording is R1-V's, which the published scores were measured with: training with images puts two
spaces between question and instruction, GEOQA's evaluation one, and SuperCLEVR's evaluation adds
"First". None of them sets a system prompt; a chat template may add its own.
"""

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

Turns = list[dict[str, Any]]


def image_turns(question: str, wording: str = TRAINING) -> Turns:
    """One user turn: an image, then `question` in one of the wordings above."""
    text = wording.replace("{question}", question)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def text_turns(question: str) -> Turns:
    """A question without an image: the system prompt, then the question as it is."""
    return [{"role": "system", "content": R1_SYSTEM}, {"role": "user", "content": question}]


def in_parts(turns: Turns) -> Turns:
    """Turns as the templates of processors take them: every content a list of parts."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn["content"], str)
        else turn
        for turn in turns
    ]


def training_turns(question: str, with_image: bool) -> Turns:
    """The prompt of a training row."""
    return image_turns(question) if with_image else text_turns(question)
