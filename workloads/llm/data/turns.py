"""Turns in the form of chat templates, from the forms of common datasets.

Every field of a turn is either handled here (role, content, tool calls, marks not to learn it) or
passed to the template unchanged. `texts_of` lists all texts of a turn, so that omissions of a
template can be reported.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Turn = dict[str, Any]

_ROLES = {
    **dict.fromkeys(("human", "question", "instruction"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "llm", "answer"), "assistant"),
    **dict.fromkeys(("observation", "function", "ipython", "tool_response"), "tool"),
    "developer": "system",
}
_OWN_ROLES = ("system", "user", "assistant", "tool")
_CALL_ROLES = ("function_call", "tool_call")  # an assistant's call, its text is JSON
_PLAIN_TURN = {"role", "content"}
# Names of marks in several libraries for turns to learn.
_MARKS = ("weight", "train", "trainable", "loss_mask", "loss")
# Fields without text to learn: ids that link calls and results, and types.
_IDENTIFIERS = frozenset(("role", "id", "type", "tool_call_id", "call_id", "index"))


class RowError(ValueError):
    """The reason why a row cannot be learnt from."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn for the template, and whether the data marks it as learnt; None without a mark."""

    turn: Turn
    learn: bool | None = None


def messages_of(value: Any, ignored: frozenset[str] = frozenset()) -> list[Message]:
    """The turns of a conversation; RowError names the one that is unfit."""
    if not isinstance(value, list) or not value:
        raise RowError("expected a list of messages")
    return [_message(turn, number, ignored) for number, turn in enumerate(value, start=1)]


def said(turn: Turn) -> str:
    """The text of a turn, without white space around it."""
    return str(turn["content"]).strip()


def texts_of(turn: Turn) -> Iterator[tuple[str, str]]:
    """Every text of a turn that is not white space alone, with the field that holds it."""
    content = turn["content"]
    if content and not content.isspace():
        yield "content", content
    if len(turn) == 2:
        return
    for name, value in turn.items():
        if name == "content" or name in _IDENTIFIERS:
            continue
        if name == "name" and turn["role"] == "tool":
            continue  # of the function, as in the call
        if name == "tool_calls":
            for call in value:
                yield from ((name, text) for text in _texts_of_call(call))
        else:
            yield from ((name, text) for text in _leaves(value, with_keys=False))


def with_texts(turn: Turn, change: Any) -> Turn:
    """A copy in which every text that `texts_of` names has gone through a function, once each."""

    def changed(value: Any, with_keys: bool) -> Any:
        if isinstance(value, str):
            return change(value) if value.strip() else value
        if isinstance(value, list):
            return [changed(item, with_keys) for item in value]
        if isinstance(value, dict):
            return {
                (change(key) if with_keys else key): inner
                if not with_keys and key in _IDENTIFIERS
                else changed(inner, with_keys)
                for key, inner in value.items()
            }
        return value

    made = {}
    for name, value in turn.items():
        if name in _IDENTIFIERS or (name == "name" and turn["role"] == "tool"):
            made[name] = value
        elif name == "tool_calls":
            made[name] = [_changed_call(call, changed) for call in value]
        else:
            made[name] = changed(value, False)
    return made


def _changed_call(call: Any, changed: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return changed(call, False)
    inner = dict(call["function"])
    if isinstance(inner.get("arguments"), dict):
        inner["arguments"] = changed(inner["arguments"], True)
    inner["name"] = changed(inner.get("name", ""), False)
    more = changed({key: inner for key, inner in call.items() if key != "function"}, False)
    return {**more, "function": inner}


def _texts_of_call(call: Any) -> Iterator[str]:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        yield from _leaves(call, with_keys=False)
        return
    inner = call["function"]
    yield str(inner.get("name", ""))
    yield from _leaves(inner.get("arguments"), with_keys=True)
    yield from _leaves({key: call[key] for key in call if key != "function"}, with_keys=False)


def _leaves(value: Any, with_keys: bool) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, with_keys)
    elif isinstance(value, dict):
        for key, item in value.items():
            if with_keys:
                yield key
            elif key in _IDENTIFIERS:
                continue
            yield from _leaves(item, with_keys)


def _message(turn: Any, number: int, ignored: frozenset[str]) -> Message:
    message = Message(dict(turn)) if _is_plain(turn) else _unified(turn, number, ignored)
    fitting = message.turn
    # A system turn or a tool's result may be empty; a question or an answer may not.
    empty = not fitting["content"] or fitting["content"].isspace()
    if empty and fitting["role"] not in ("system", "tool") and not fitting.get("tool_calls"):
        if fitting["role"] == "assistant" and len(fitting) == 2:
            raise RowError("the answer is empty")
        found = ", ".join(turn)
        raise RowError(f"turn {number} says nothing; found {found}")
    return message


def _is_plain(turn: Any) -> bool:
    """Whether a turn already has the form of templates; nearly all have."""
    if not isinstance(turn, dict) or turn.keys() != _PLAIN_TURN:
        return False
    return isinstance(turn["content"], str) and turn["role"] in _OWN_ROLES


def _unified(turn: Any, number: int, ignored: frozenset[str]) -> Message:
    """A turn with `role` and `content`; other fields go to the template unchanged."""
    if not isinstance(turn, dict):
        raise RowError("expected a message as an object with role and content")
    # Tables add null fields to turns that lack them.
    kept = {name: value for name, value in turn.items() if value is not None}
    kept = {name: value for name, value in kept.items() if name not in ignored}
    role = kept.pop("role", kept.pop("from", None))
    if not isinstance(role, str):
        raise RowError(f"turn {number}: expected a message with role and content, found no role")
    content = kept.pop("content", None)
    content = kept.pop("value", "") if content is None else content
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise RowError("expected a message with role and content as texts")
    learn = _mark(kept, number)
    known = role.strip().casefold()
    if known in _CALL_ROLES:
        calls = _calls_in_text(content, number)
        return Message({"role": "assistant", "content": "", "tool_calls": calls, **kept}, learn)
    if "function_call" in kept:
        kept["tool_calls"] = [kept.pop("function_call"), *kept.get("tool_calls", [])]
    if "tool_calls" in kept:
        kept["tool_calls"] = _calls(kept["tool_calls"], number)
        if not kept["tool_calls"]:
            del kept["tool_calls"]
    role = known if known in _OWN_ROLES else _ROLES.get(known, role)
    if learn and role != "assistant":
        raise RowError(
            f"turn {number} ({role}) is marked as one to be learnt; only an assistant's can be"
        )
    return Message({"role": role, "content": content, **kept}, learn)


def _mark(kept: dict[str, Any], number: int) -> bool | None:
    """Whether the data marks the turn as learnt; the marks are removed from it."""
    found = {name: kept.pop(name) for name in _MARKS if name in kept}
    for name, value in found.items():
        if value not in (0, 1):
            raise RowError(f"turn {number}: expected {name} 0 or 1, found {value!r}")
    if len(set(found.values())) > 1:
        raise RowError(f"turn {number}: expected one mark, found {found}")
    return bool(next(iter(found.values()))) if found else None


def _calls(value: Any, number: int) -> list[Turn]:
    """Calls of tools as `{"type": "function", "function": {"name", "arguments"}}`, parsed."""
    if isinstance(value, str):
        value = _json(value, number)
    if not isinstance(value, list):
        raise RowError(f"turn {number}: expected tool_calls as a list")
    return [_call(call, number) for call in value]


def _call(call: Any, number: int) -> Turn:
    if not isinstance(call, dict):
        raise RowError(f"turn {number}: expected a call of a tool as an object")
    call = {name: value for name, value in call.items() if value is not None}
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError(f"turn {number}: expected a call of a tool with its name")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, number) if arguments.strip() else {}
    elif isinstance(arguments, dict):
        # Tables add null arguments of all other calls.
        arguments = {name: value for name, value in arguments.items() if value is not None}
    known = ("function", "type", "name", "arguments", "parameters")
    more = {name: value for name, value in {**inner, **call}.items() if name not in known}
    return {**more, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def _calls_in_text(text: str, number: int) -> list[Turn]:
    value = _json(text, number)
    return _calls(value if isinstance(value, list) else [value], number)


def _json(text: str, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError(f"turn {number}: expected a call of a tool as JSON: {error}") from error


def _joined(parts: list[Any]) -> str:
    """Join the text parts of a message. Raises RowError for other parts, which would be lost."""
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("expected texts as the parts of a message, found others, such as an image")
    return "".join(texts)
