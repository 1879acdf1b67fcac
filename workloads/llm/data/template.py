"""Rows as text: what a model reads, and which characters of it the model is to learn.

The model's own chat template renders a row twice, once in full and once up to the question with
the generation prompt behind it. What the full text has beyond that prompt is the answer, with the
token that ends it. Nothing is guessed about a template's markers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from workloads.llm.config import LlmData

Turn = dict[str, Any]
Row = Mapping[str, Any]

# For tokenizers without a chat template: questions as they are, each answer with its end token.
PLAIN_TEMPLATE = (
    "{{ begin }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}{{ joint }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
# Some templates write today's date into every prompt. With a fixed one the same rows give the same
# tokens on every day and node; this is the date those templates fall back on themselves.
FIXED_DATE = "26 Jul 2024"
# Other names for the roles and fields of a turn, as widely shared data sets have them.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_PLAIN_TURN = {"role", "content"}
_PROBE = "Tatara"
_OPENED = re.compile(r"(<[^<>\s]+>)(\s*)\Z")
_COMPARED = 4  # conversations of a batch whose earlier answers are looked for in both ways


class RowError(ValueError):
    """A row that cannot be learnt from, with the reason."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text. `spans`: begin and end of what the model is to learn, in characters."""

    text: str
    spans: tuple[tuple[int, int], ...]
    # The template renders an answered question differently from an open one.
    rebuilt: bool = False


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation and which of its turns are to be learnt."""

    turns: list[Turn]
    answers: list[int]


class Template:
    """Renders the rows of a data set for one tokenizer. Holds no state besides its settings."""

    def __init__(self, data: LlmData, tokenizer: PreTrainedTokenizerBase) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.own = tokenizer.chat_template is not None
        # What stands between a question and its answer where no template says it.
        self._joint = "\n" if data.format in ("qa", "messages") else ""

    def notes(self) -> list[str]:
        """What to tell about how rows are rendered."""
        notes = []
        if not self.own and self.data.format != "text":
            notes.append(
                "the tokenizer has no chat template: rows are plain question, answer, end token"
            )
        if self.tokenizer.eos_token is None:
            notes.append("the tokenizer has no end token: answers have no end to learn")
        return notes

    def prompt(self, row: Row) -> str:
        """The text that a model is given to answer a row; special tokens are in it already.

        Raises RowError where the row is unfit.
        """
        talk = self._talk(row)
        try:
            return self._render([talk.turns[: talk.answers[-1]]], True)[0]
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused(error) from error

    def render(self, rows: Sequence[Row]) -> list[Rendered | RowError]:
        """Each row as text, or what is wrong with it."""
        if self.data.format == "text":
            return [_caught(self._text, row) for row in rows]
        talks = [_caught(self._talk, row) for row in rows]
        good = [talk for talk in talks if isinstance(talk, _Talk)]
        try:
            rendered = iter(self._talks(good))
        except (TemplateError, TypeError, ValueError):
            rendered = iter([_caught(self._alone, talk) for talk in good])
        return [talk if isinstance(talk, RowError) else next(rendered) for talk in talks]

    def _text(self, row: Row) -> Rendered:
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            raise RowError("the text is empty")
        end = self.tokenizer.eos_token or ""
        text = text if end and text.endswith(end) else text + end
        text = text if self._begin and text.startswith(self._begin) else self._begin + text
        return Rendered(text, ((0, len(text)),))

    def _talk(self, row: Row) -> _Talk:
        if not self._writes_text:
            raise RowError("the chat template leaves out what a turn says, unless in parts")
        turns, asked = self._turns(row)
        suffix, system = self.data.prompt_suffix, self.data.system_prompt
        if suffix:
            turns = [_suffixed(turn, suffix) if turn["role"] == "user" else turn for turn in turns]
        if system is not None and turns[0]["role"] != "system":
            turns, asked = [{"role": "system", "content": system}, *turns], asked + 1
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i >= asked]
        if not answers:
            raise RowError("no turn of an assistant to learn from")
        for answer in answers:
            turn = turns[answer]
            if not _said(turn) and not turn.get("tool_calls"):
                raise RowError("the answer is empty")
        return _Talk(turns[: answers[-1] + 1], answers)

    def _turns(self, row: Row) -> tuple[list[Turn], int]:
        """The row's turns, and how many of them are only given and never learnt."""
        if self.data.format == "messages":
            return _messages(row["messages"]), 0
        names = ("question", "answer") if self.data.format == "qa" else ("prompt", "completion")
        asked, said = row[names[0]], row[names[1]]
        if isinstance(asked, list) and isinstance(said, list):
            given = _messages(asked)
            return given + _messages(said), len(given)
        if not isinstance(asked, str) or not isinstance(said, str):
            raise RowError(f"expected texts as {names[0]!r} and {names[1]!r}")
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return turns, 1

    def _alone(self, talk: _Talk) -> Rendered:
        """One conversation by itself, where rendering many has failed."""
        try:
            return self._talks([talk])[0]
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused(error) from error

    def _talks(self, talks: Sequence[_Talk]) -> list[Rendered]:
        whole = self._render([talk.turns for talk in talks], False)
        prompts = self._render([talk.turns[: talk.answers[-1]] for talk in talks], True)
        scans = self._may_scan(talks, whole)
        return [
            self._rendered(talk, text, prompt, scans)
            for talk, text, prompt in zip(talks, whole, prompts, strict=True)
        ]

    def _may_scan(self, talks: Sequence[_Talk], whole: Sequence[str]) -> bool:
        """Whether looking for earlier answers finds what rendering each prompt does, on some."""
        pairs = zip(talks, whole, strict=True)
        some = [pair for pair in pairs if len(pair[0].answers) > 1][:_COMPARED]
        return all(self._scanned(*pair) == self._asked(*pair) for pair in some)

    def _rendered(self, talk: _Talk, text: str, prompt: str, scans: bool) -> Rendered:
        follows = text.startswith(prompt)
        spans = self._all_spans(talk, text, prompt, scans) if follows else None
        if spans is not None:
            return self._cut(text, spans)
        # Only the last answer then, behind the prompt exactly as a model will be given it: in the
        # template's own words where they begin with that prompt.
        last = talk.answers[-1]
        spans = self._spans(_Talk(talk.turns, [last]), text, [len(prompt)]) if follows else None
        if spans is None:
            text = prompt + _behind_opened_tag(prompt, _said(talk.turns[last])) + self._end
            spans = [(len(prompt), len(text))]
        return self._cut(text, spans, rebuilt=True)

    def _all_spans(
        self, talk: _Talk, text: str, prompt: str, scans: bool
    ) -> list[tuple[int, int]] | None:
        earlier = (self._scanned(talk, text) if scans else None) or self._asked(talk, text)
        return None if earlier is None else self._spans(talk, text, [*earlier, len(prompt)])

    def _cut(self, text: str, spans: list[tuple[int, int]], rebuilt: bool = False) -> Rendered:
        """The text up to the end of the last answer, with an end token if it has none."""
        return Rendered(self._ended(text[: spans[-1][1]], spans), tuple(spans), rebuilt)

    def _asked(self, talk: _Talk, text: str) -> list[int] | None:
        """Where all answers but the last begin, by rendering the prompt of each.

        None where the full text does not begin with those prompts. The time is quadratic in turns.
        """
        prompts = self._render([talk.turns[:answer] for answer in talk.answers[:-1]], True)
        held = all(text.startswith(prompt) for prompt in prompts)
        return [len(prompt) for prompt in prompts] if held else None

    def _scanned(self, talk: _Talk, text: str) -> list[int] | None:
        """The same by looking through the text; None where that finds nothing."""
        starts = []
        place = 0
        for number, turn in enumerate(talk.turns[: talk.answers[-1]]):
            said = _said(turn)
            if number not in talk.answers:
                found = text.find(said, place)
                place = place if found < 0 else found + len(said)
                continue
            found = text.find(self._opening + said, place) if self._opening else -1
            if found < 0:
                return None
            starts.append(found + len(self._opening))
            place = starts[-1] + len(said)
        return starts

    def _spans(self, talk: _Talk, text: str, starts: list[int]) -> list[tuple[int, int]] | None:
        """Where the answers begin and end in the full text; None where one is not in it."""
        spans = []
        for answer, start, limit in zip(
            talk.answers, starts, [*starts[1:], len(text)], strict=True
        ):
            said = _said(talk.turns[answer])
            found = text.find(said, start, limit)
            if found < 0:
                return None
            end = self._closed(text, found + len(said), limit)
            if end is None:
                is_last = answer == talk.answers[-1]
                end = len(text) if is_last else found + len(said)
            spans.append((start, end))
        return spans

    def _closed(self, text: str, end: int, limit: int) -> int | None:
        """Where what closes an answer ends, which ends itself at `end`; None where nothing does."""
        marker = text.find(self._end, end, limit) if self._end else -1
        if marker >= 0:
            return marker + len(self._end)
        # Some templates close the last answer in a way of its own, or twice.
        place = limit - len(text[end:limit].lstrip())
        sizes = [len(token) for token in self._special if text.startswith(token, place)]
        return place + max(sizes) if sizes else None

    def _ended(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with the end token where the template gives the last answer none."""
        end = self.tokenizer.eos_token
        if self._end or not end or text.endswith(end):
            return text
        spans[-1] = (spans[-1][0], len(text) + len(end))
        return text + end

    @cached_property
    def _writes_text(self) -> bool:
        """Whether a plain text gets into the prompt; some templates for pictures drop it."""
        try:
            return _PROBE in self._render([[{"role": "user", "content": _PROBE}]], True)[0]
        except (TemplateError, TypeError, ValueError):
            return True  # each row says what is wrong

    @cached_property
    def _end(self) -> str:
        """The token that ends an answer, as the template writes it; empty if it writes none."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._render([turns], False)[0]
        except (TemplateError, TypeError, ValueError):
            return ""
        tail = text.rpartition(_PROBE)[2].rstrip()
        return tail if any(tail.endswith(token) for token in self._special) else ""

    @cached_property
    def _special(self) -> list[str]:
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]

    @cached_property
    def _opening(self) -> str:
        """What the template writes to let an assistant speak; empty where that is not clear."""
        turns = [{"role": "user", "content": _PROBE}]
        try:
            told, asked = self._render([turns], False)[0], self._render([turns], True)[0]
        except (TemplateError, TypeError, ValueError):
            return ""
        return asked.removeprefix(told) if asked.startswith(told) else ""

    @cached_property
    def _begin(self) -> str:
        """The token that the tokenizer puts before every text, if it does."""
        begin = self.tokenizer.bos_token
        if begin is None:
            return ""
        ids = self.tokenizer(_PROBE)["input_ids"]
        return begin if ids and ids[0] == self.tokenizer.bos_token_id else ""

    def _render(self, talks: list[list[Turn]], asks: bool) -> list[str]:
        if not talks:
            return []
        extra: dict[str, Any] = {"date_string": FIXED_DATE}
        if not self.own:
            extra = {"chat_template": PLAIN_TEMPLATE, "begin": self._begin, "joint": self._joint}
        rendered: list[str] = self.tokenizer.apply_chat_template(
            talks, tokenize=False, add_generation_prompt=asks, **extra
        )
        return rendered


def _caught(make: Callable[[Any], Any], item: Any) -> Any:
    try:
        return make(item)
    except RowError as error:
        return error


def _refused(error: Exception) -> RowError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return RowError(f"the chat template refuses it: {reason[0]}")


def _said(turn: Turn) -> str:
    return str(turn["content"]).strip()


def _behind_opened_tag(prompt: str, said: str) -> str:
    """An answer without the tag, such as <think>, that the end of its prompt has opened already."""
    opened = _OPENED.search(prompt)
    if opened is None or not said.startswith(opened[1]):
        return said
    return said.removeprefix(opened[1]).removeprefix(opened[2])


def _suffixed(turn: Turn, suffix: str) -> Turn:
    return {**turn, "content": turn["content"] + suffix}


def _messages(value: Any) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise RowError("expected a list of messages")
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> Turn:
    """A turn with `role` and `content`; what else it holds goes to the template as it is."""
    if _is_plain(turn):
        return dict(turn)
    if not isinstance(turn, dict):
        raise RowError("expected a message as an object with role and content")
    # Tables fill in fields that a turn does not have.
    kept = {name: value for name, value in turn.items() if value is not None}
    role = kept.pop("role", kept.pop("from", None))
    content = kept.pop("content", kept.pop("value", ""))
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError("expected a message with role and content as texts")
    return {"role": _ROLES.get(role, role), "content": content, **kept}


def _joined(parts: list[Any]) -> str:
    """The text of a message that comes in parts; one that is no text would be lost in silence."""
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("expected texts as the parts of a message, found others, such as a picture")
    return "".join(texts)


def _is_plain(turn: Any) -> bool:
    """Whether a turn is as templates want it; nearly all are."""
    if not isinstance(turn, dict) or turn.keys() != _PLAIN_TURN:
        return False
    role, content = turn["role"], turn["content"]
    return isinstance(role, str) and isinstance(content, str) and role not in _ROLES
