"""Checks that every text of every turn stands in the rendered row; else the row is bad.

A template is tried once with every shape of conversation, each text replaced by a unique word, so
that a short text is not confused with the template's own. Then each row's own texts are searched,
since a template may drop a text because of its content.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from workloads.llm.data.conversation import Conversation
from workloads.llm.data.switches import Switches
from workloads.llm.data.turns import RowError, Turn, texts_of, with_texts

_THOUGHT = re.compile(r"</?(?:think|thinking|thought|reasoning)>")
Missing = tuple[int, str]  # number of the turn, and the field that holds the text


@dataclass
class TemplateGuard:
    """Checks rows that were rendered by one template."""

    switches: Switches
    _shapes: dict[Any, list[Missing]] = field(default_factory=dict)

    def check(self, talk: Conversation, text: str) -> list[tuple[str, str]]:
        """Remarks on intended omissions; raises RowError that names a turn missing in the text."""
        shape = tuple([_shape(turn) for turn in talk.turns])
        missing = self._shapes.get(shape)
        if missing is None:
            missing = self._shapes[shape] = self._tried(talk)
        if missing:
            raise _left_out(talk, *missing[0])
        remarks = []
        for number, turn in enumerate(talk.turns):
            if len(turn) == 2 and turn["content"] in text:
                continue
            for name, words in texts_of(turn):
                if _stands(words, text):
                    continue
                if number < talk.answers[-1] and _without_thoughts(words, text):
                    remarks.append(("thoughts", f"turn {number + 1}"))
                    continue
                raise _left_out(talk, number, name)
        return remarks[:1]

    def _tried(self, talk: Conversation) -> list[Missing]:
        """The turns of which the template leaves out a text, whatever its content."""
        words: list[tuple[str, int]] = []
        turns = []
        for number, turn in enumerate(talk.turns):

            def change(text: str, number: int = number) -> str:
                words.append((f"zq{len(words)}qz", number))
                return words[-1][0]

            turns.append(with_texts(turn, change))
        text = self.switches.tried(turns, False, talk.tools)
        if text is None:
            return []  # the row itself says what is wrong
        lost = {word for word, _ in words if word not in text}
        return [
            (number, name)
            for number, turn in enumerate(turns)
            for name, word in texts_of(turn)
            if word in lost
        ]


def _shape(turn: Turn) -> Any:
    """The structure of a turn without its texts, which decides how a template treats it."""
    if len(turn) == 2:
        return turn["role"], bool(turn["content"])
    return turn["role"], bool(turn["content"]), _structure(turn)


def _structure(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((key, _structure(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return tuple(sorted({repr(_structure(item)) for item in value}))
    return type(value).__name__


def _left_out(talk: Conversation, number: int, name: str) -> RowError:
    turn = talk.turns[number]
    what = f"what turn {number + 1} ({turn['role']}) says"
    if name != "content":
        what = f"{name!r} of turn {number + 1} ({turn['role']})"
    return RowError(f"the chat template leaves out {what}")


def _stands(words: str, text: str) -> bool:
    if words.strip() in text:
        return True
    # As JSON, with other white space, or line by line, as templates write texts.
    as_json = json.dumps(words, ensure_ascii=False)[1:-1]
    if as_json in text or json.dumps(words)[1:-1] in text:
        return True
    flat = _squeezed(text)
    parts = [part for line in words.splitlines() for part in _THOUGHT.split(line)]
    return all(_squeezed(part) in flat for part in parts)


def _without_thoughts(words: str, text: str) -> bool:
    """Whether only the thoughts of an earlier answer are left out, as reasoning models do."""
    _, closes, rest = words.rpartition("</think>")
    return bool(closes) and _stands(rest, text)


def _squeezed(text: str) -> str:
    return "".join(text.split())
