"""A row of any format as a conversation: turns, which of them are learnt, and the tools."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workloads.llm.config import LlmData
from workloads.llm.data.columns import format_of
from workloads.llm.data.switches import Switches
from workloads.llm.data.turns import Message, RowError, Turn, messages_of, said

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns up to the last answer, which of them are learnt, and the tools to call.

    joint: text between question and answer for a model without a template. remarks: as in
    `template.Rendered`.
    """

    turns: list[Turn]
    answers: list[int]
    tools: list[Any] | None = None
    joint: str = "\n"
    remarks: tuple[tuple[str, str], ...] = ()


def conversation_of(row: Row, data: LlmData, switches: Switches) -> Conversation:
    """The conversation of a kept row; RowError where it is unfit."""
    if not switches.writes_text:
        raise RowError("the chat template leaves out what a turn says, unless in parts")
    name = format_of(row, data)
    messages, given = _messages(name, row, data, switches)
    learn = [message.learn for message in messages]
    turns = [message.turn for message in messages]
    if data.prompt_prefix or data.prompt_suffix or data.answer_prefix:
        turns = [_dressed(turn, data) for turn in turns]
    remarks = []
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise RowError("expected a text as 'system'")
    if turns[0]["role"] == "system":
        if data.system_prompt:
            remarks.append(("own_system", ""))
        if system.strip() and system.strip() != said(turns[0]):
            raise RowError("two system turns: one in the column 'system', one among the turns")
    elif system.strip() or data.system_prompt:
        if system.strip() and data.system_prompt:
            remarks.append(("own_system", ""))
        content = system if system.strip() else data.system_prompt
        turns = [{"role": "system", "content": content}, *turns]
        learn, given = [None, *learn], given + 1
    answers = _answers(turns, learn, given)
    if turns[0]["role"] == "system" and merges(data, switches):
        turns, merged = _merged(turns)
        answers = [answer - merged for answer in answers]
        remarks += [("merged", "")] if merged else []
    if len(turns) > answers[-1] + 1:
        remarks.append(("trailing", turns[answers[-1] + 1]["role"]))
    tools = row.get("tools") or None
    if tools and not switches.takes_tools:
        remarks.append(("tools", ""))
        tools = None
    # A prompt and its completion are one text in two parts.
    joint = "" if name == "prompt_completion" else "\n"
    return Conversation(turns[: answers[-1] + 1], answers, tools, joint, tuple(remarks))


def _messages(name: str, row: Row, data: LlmData, switches: Switches) -> tuple[list[Message], int]:
    """The turns of a row, and the number of leading ones that are only given, not learnt."""
    ignored = frozenset(data.ignore)
    if name in ("messages", "sharegpt"):
        value = row["messages"] if name == "messages" else row["conversations"]
        return messages_of(value, ignored), 0
    if name == "alpaca":
        return _alpaca(row, switches), 0
    if name == "template":
        texts = [filled(item or "", row) for item in (data.prompt, data.answer)]
        return _pair(*texts, "data.prompt", "data.answer"), 1
    names = ("question", "answer") if name == "qa" else ("prompt", "completion")
    asked: Any = row[names[0]]
    answer: Any = row[names[1]]
    if name == "prompt_completion" and (isinstance(asked, list) or isinstance(answer, list)):
        # Either may be a text: the question of a user, or the answer of an assistant.
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        before = messages_of(asked, ignored)
        return before + messages_of(answer, ignored), len(before)
    return _pair(asked, answer, *names), 1


def _pair(asked: Any, answer: Any, *names: str) -> list[Message]:
    if not isinstance(asked, str) or not isinstance(answer, str):
        raise RowError(f"expected texts as {names[0]!r} and {names[1]!r}")
    if not asked.strip():
        raise RowError(f"the question says nothing ({names[0]} is empty)")
    if not answer.strip():
        raise RowError("the answer is empty")
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [Message(turn) for turn in turns]


def _alpaca(row: Row, switches: Switches) -> list[Message]:
    """Instruction and input as one question; earlier pairs of `history` come before it."""
    turns: list[Message] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("expected 'history' as pairs of a question and an answer")
        turns += _pair(pair[0], pair[1], "history", "history")
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise RowError("expected a text as 'input'")
    asked = row["instruction"]
    turns += _pair(asked, row["output"], "instruction", "output")
    if more.strip():
        own = {"input": more} if switches.takes_input else {"content": f"{asked}\n{more}"}
        turns[-2] = Message({**turns[-2].turn, **own})
    return turns


def filled(template: str, row: Row) -> str:
    """A template of columns with the row's texts; an empty one leaves no blank line at the end."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            if not isinstance(row[name], str):
                raise RowError(f"expected a text as {name!r}")
            parts.append(row[name])
    return "".join(parts).strip()


def _dressed(turn: Turn, data: LlmData) -> Turn:
    """The turn with the profile's texts around its question or answer."""
    if turn["role"] == "user" and (data.prompt_prefix or data.prompt_suffix):
        return {**turn, "content": data.prompt_prefix + turn["content"] + data.prompt_suffix}
    if turn["role"] == "assistant" and data.answer_prefix and turn["content"]:
        return {**turn, "content": data.answer_prefix + turn["content"]}
    return turn


def _answers(turns: list[Turn], learn: list[bool | None], given: int) -> list[int]:
    """The turns to be learnt; a greeting before the first question is given, not learnt."""
    roles = [turn["role"] for turn in turns]
    first = roles.index("user") if "user" in roles else 0
    least = max(given, first, 1)
    able = [i for i, role in enumerate(roles) if role == "assistant" and i >= least]
    answers = [i for i in able if learn[i] is not False]
    if answers:
        return answers
    found = ", ".join(dict.fromkeys(roles))
    if able:
        raise RowError("every answer is marked as one not to be learnt")
    raise RowError(f"no turn of an assistant to learn from; found roles {found}")


def merges(data: LlmData, switches: Switches) -> bool:
    if data.system_turn == "auto":
        return not switches.takes_system
    return data.system_turn == "merge"


def _merged(turns: list[Turn]) -> tuple[list[Turn], int]:
    """The turns with the system turn in the first question, and how many fewer they are."""
    system, *rest = turns
    place = next((i for i, turn in enumerate(rest) if turn["role"] == "user"), None)
    if place is None:
        return turns, 0
    words = said(system)
    if words:
        rest[place] = {**rest[place], "content": f"{words}\n\n{rest[place]['content']}"}
    return rest, 1
